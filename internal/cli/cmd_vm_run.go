package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/client"
	"banger/internal/guest"
)

// acceptTime bounds a request that only has to be accepted.
const acceptTime = 30 * time.Second

func (a *App) vmRunCommand() *cobra.Command {
	var spec specFlags
	var sess sessionFlags
	var rm, detach bool
	cmd := &cobra.Command{
		Use:   "run [flags] [--] [COMMAND [ARG...]]",
		Short: "Make a VM and run a command in it",
		Long: `Makes a VM, starts it, and runs COMMAND in it, without a shell in between: quote
as for a local command. stdin, stdout and stderr are the command's, signals are
passed on, and the exit code is the command's (128+n if signal n ended it, 125
if banger itself failed). Without COMMAND you get a login shell.

The VM stays and keeps running unless --rm is given.`,
		Example: `  banger vm run --rm -- uname -a                 a fresh VM for one command
  tar c . | banger vm run --rm -- tar x -C /tmp  data through stdin
  banger vm run --name box                       a shell in a VM to keep
  banger vm run --memory 4G --vcpu 4 --rm -- make test`,
		Annotations: map[string]string{passesExitCode: "yes"},
		RunE: func(cmd *cobra.Command, argv []string) error {
			if detach && rm {
				return usage(cmd, "-d and --rm exclude each other: nothing would be left")
			}
			if detach && len(argv) > 0 {
				return usage(cmd, "-d takes no command; run one later with banger vm exec")
			}
			vm, err := spec.spec(cmd)
			if err != nil {
				return err
			}
			command, err := sess.command(cmd, argv, a.Getenv)
			if err != nil {
				return err
			}
			if a.json && !detach {
				return usage(cmd, "--json needs -d: otherwise stdout is the command's")
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			r := &run{app: a, client: c, rm: rm}
			if detach {
				return r.detached(cmd.Context(), vm)
			}
			return r.attached(cmd.Context(), vm, command)
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows COMMAND is COMMAND's
	a.specFlags(cmd, &spec)
	sess.add(cmd)
	cmd.Flags().BoolVar(&rm, "rm", false, "delete the VM after the command, however it ends")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "start the VM, print its name and leave it running")
	a.jsonFlag(cmd)
	return cmd
}

// run is one `vm run`.
type run struct {
	app    *App
	client *client.Client
	rm     bool
}

// attached makes a VM and runs command in it.
func (r *run) attached(ctx context.Context, spec api.VMSpec, command command) error {
	vm, err := r.start(ctx, spec)
	if err != nil {
		return err
	}
	conn, err := r.client.Dial(ctx, vm.ID, guest.ControlPort)
	if err != nil {
		if r.rm || ctx.Err() != nil {
			r.remove(vm.ID)
		}
		return fmt.Errorf("cannot reach the guest of %s: %w", vm.Name, err)
	}
	code, err := r.app.runSession(ctx, conn, command)
	_ = conn.Close() // the session is over either way
	switch {
	case r.rm || err != nil && ctx.Err() != nil: // cancelled before the command began
		if gone := r.remove(vm.ID); !gone && err == nil && code == 0 {
			code = exitOwn // said already; but it must not pass for success
		}
	case r.app.talk.terminal:
		r.app.talk.note("%s still runs", vm.Name)
		r.app.talk.hint(fmt.Sprintf("banger vm exec %s -- COMMAND, banger vm stop %s, banger vm delete %s", vm.Name, vm.Name, vm.Name))
	}
	if err != nil {
		return fmt.Errorf("cannot run the command in %s: %w", vm.Name, err)
	}
	if code != 0 {
		return exitError{code}
	}
	return nil
}

func (r *run) detached(ctx context.Context, spec api.VMSpec) error {
	vm, err := r.start(ctx, spec)
	if err != nil {
		return err
	}
	if r.app.json {
		return r.app.printJSON(vm)
	}
	_, err = fmt.Fprintln(r.app.Out, vm.Name)
	return err
}

// start makes the VM and waits until it runs. What it leaves behind on failure
// is nothing with --rm or after a cancellation, else the failed VM to look at.
func (r *run) start(ctx context.Context, spec api.VMSpec) (api.VM, error) {
	spec.Ephemeral = r.rm
	// Not with ctx: once the daemon may have heard us we must learn what we own.
	accept, done := context.WithTimeout(r.app.signals.hard, acceptTime)
	op, err := r.client.CreateVM(accept, spec)
	done()
	if err == nil && op.VM == nil {
		err = api.Internal("bangerd did not say which VM it made")
	}
	if err != nil {
		return api.VM{}, fmt.Errorf("cannot create a VM: %w", err)
	}
	made := *op.VM
	if r.rm {
		r.hold(made.ID)
	}
	ended, err := r.app.follow(ctx, r.client, op)
	if err == nil {
		return *ended.VM, nil
	}
	if ctx.Err() != nil || r.rm {
		r.remove(made.ID)
	}
	return api.VM{}, fmt.Errorf("cannot start %s: %w", made.Name, err)
}

// hold takes the lease of the VM until this process ends, however it does: then
// the daemon deletes the VM if we have not.
func (r *run) hold(id string) {
	go func() {
		// It ends early only for a VM that is gone, and that we are about to see.
		_ = r.client.HoldLease(context.Background(), id)
	}()
}

// remove deletes the VM, also when the person has cancelled, and reports
// whether it is gone. It says itself when it is not.
func (r *run) remove(id string) bool {
	ctx, done := r.app.cleanup()
	defer done()
	op, err := r.client.DeleteVM(ctx, id, true)
	if err == nil {
		if op, err = r.client.Watch(ctx, op.ID, nil); err == nil {
			err = outcome(op)
		}
	}
	if err == nil || isNotFound(err) {
		return true
	}
	r.app.talk.fail(fmt.Errorf("cannot delete VM %s: %w", id, err))
	r.app.talk.hint("banger vm delete --force " + id)
	return false
}

func isNotFound(err error) bool {
	p, ok := errors.AsType[*api.Problem](err)
	return ok && p.Code == api.CodeNotFound
}

// specFlags describe a VM.
type specFlags struct {
	settingFlags
	name string
}

func (a *App) specFlags(cmd *cobra.Command, s *specFlags) {
	cmd.Flags().StringVar(&s.name, "name", "", "name of the VM (default: made up)")
	complete(cmd, "name", cobra.NoFileCompletions)
	a.settingFlags(cmd, &s.settingFlags, " (default: the configured one)")
}

func (s *specFlags) spec(cmd *cobra.Command) (api.VMSpec, error) {
	if cmd.Flags().Changed("name") && !guest.ValidName(s.name) {
		return api.VMSpec{}, badName(s.name)
	}
	c, err := s.change(cmd)
	if err != nil {
		return api.VMSpec{}, err
	}
	spec := api.VMSpec{Name: s.name, Image: s.image, Kernel: s.kernel, VCPU: c.VCPU, MemoryMiB: c.MemoryMiB, DiskBytes: c.DiskBytes,
		NAT: c.NAT, Network: s.network, Autostart: s.autostart, IdleStopSeconds: c.IdleStopSeconds,
		CPUWeight: c.CPUWeight, IOWeight: c.IOWeight, CPULimitMillis: c.CPULimitMillis, IOLimitBytes: c.IOLimitBytes}
	if c.Restart != nil {
		spec.Restart = *c.Restart
	}
	return spec, nil
}

func badName(name string) error {
	return &usageError{fmt.Sprintf("%q cannot be a name", name),
		"a name has 1 to 63 of a-z, 0-9 and -, and no - at either end"}
}
