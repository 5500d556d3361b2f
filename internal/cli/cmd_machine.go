package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/machine"
)

func (a *App) machineCommand() *cobra.Command {
	return group("machine", "A virtual machine that serves as banger's host",
		`Where this host has no usable KVM, no root or no device-mapper, a Debian machine
under QEMU with banger installed in it is the host instead. All other commands
use it by themselves when no banger is installed here. NAME is "default" if absent.

The common case: banger machine init, once, and banger machine start after a reboot.`,
		a.machineInitCommand(), a.machineStartCommand(), a.machineStopCommand(),
		a.machineStatusCommand(), a.machineSSHCommand(), a.machineRemoveCommand())
}

// machineCmd completes cmd with do, which gets the machine named.
func (a *App) machineCmd(cmd *cobra.Command, do func(context.Context, *machine.Machine, machine.Progress) error) *cobra.Command {
	cmd.Args = args(0, 1, "at most the name of a machine")
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := machine.New(first(args))
		if err != nil {
			return err
		}
		steps := a.newSteps()
		err = do(cmd.Context(), m, steps.begin)
		steps.stop(err == nil)
		if cause := context.Cause(cmd.Context()); err != nil && cause != nil {
			return cause
		}
		return err
	}
	return cmd
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func (a *App) machineInitCommand() *cobra.Command {
	var o machine.InitOptions
	var memory string
	cmd := a.machineCmd(&cobra.Command{
		Use: "init [NAME]", Short: "Make a machine, and start it",
		Long: `Builds or takes from the cache a Debian system, boots it, and installs this banger,
a guest kernel and a default image in it. Run again, it brings the banger in the
machine up to this one.`,
		Example: "  banger machine init\n  banger machine init --cpus 4 --memory 8G",
	}, func(ctx context.Context, m *machine.Machine, p machine.Progress) error {
		if memory != "" {
			n, err := parseMiB(memory)
			if err != nil {
				return &usageError{"--memory " + err.Error(), "see banger machine init --help"}
			}
			o.MemoryMiB = n
		}
		return m.Init(ctx, o, p)
	})
	f := cmd.Flags()
	f.IntVar(&o.CPUs, "cpus", 0, "its CPUs (default: the host's, up to 8; 1 if it is emulated)")
	f.StringVar(&memory, "memory", "", "its memory, e.g. 8G (default: a share of the host's)")
	f.StringVar(&o.Binaries, "from", "", "directory of the programs to install (default: beside this one)")
	f.BoolVar(&o.NoImage, "no-image", false, "leave the default image out")
	f.BoolVar(&o.Disposable, "disposable", false, "faster, but a crash of this host may destroy the machine's disk")
	return cmd
}

func (a *App) machineStartCommand() *cobra.Command {
	return a.machineCmd(&cobra.Command{
		Use: "start [NAME]", Short: "Start a machine", Example: "  banger machine start",
	}, func(ctx context.Context, m *machine.Machine, p machine.Progress) error { return m.Start(ctx, p) })
}

func (a *App) machineStopCommand() *cobra.Command {
	return a.machineCmd(&cobra.Command{
		Use: "stop [NAME]", Short: "Shut a machine down, with all VMs in it", Example: "  banger machine stop",
	}, func(ctx context.Context, m *machine.Machine, p machine.Progress) error { return m.Stop(ctx, p) })
}

func (a *App) machineRemoveCommand() *cobra.Command {
	var force bool
	cmd := a.machineCmd(&cobra.Command{
		Use: "rm [NAME]", Aliases: []string{"delete"}, Short: "Remove a machine with all that is in it",
		Long: "Asks first when on a terminal.", Example: "  banger machine rm",
	}, func(ctx context.Context, m *machine.Machine, _ machine.Progress) error {
		exists, err := m.Exists()
		if err != nil {
			return err
		}
		if exists && !force && isTerminal(a.In) && a.talk.terminal {
			yes, err := a.ask(ctx, fmt.Sprintf("Remove machine %s with all VMs and data in it?", m.Name))
			if err != nil {
				return err
			}
			if !yes {
				return errors.New("nothing removed")
			}
		}
		return m.Remove(ctx)
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

func (a *App) machineStatusCommand() *cobra.Command {
	cmd := a.machineCmd(&cobra.Command{
		Use: "status [NAME]", Short: "Show a machine", Example: "  banger machine status --json",
	}, func(_ context.Context, m *machine.Machine, _ machine.Progress) error {
		s, err := m.Status()
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(s)
		}
		return a.facts([][2]string{{"name", s.Name}, {"state", string(s.State)}, {"directory", s.Dir},
			{"cpus", number(s.CPUs)}, {"memory", sizeOrNothing(s.MemoryMiB)}, {"created", when(s.CreatedAt)},
			{"banger", s.Version}, {"accelerator", s.Accel}, {"process", number(s.PID)},
			{"ssh port", number(s.Port)}, {"started", when(s.StartedAt)}})
	})
	a.jsonFlag(cmd)
	return cmd
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func sizeOrNothing(n int) string {
	if n == 0 {
		return ""
	}
	return mib(n)
}

func (a *App) machineSSHCommand() *cobra.Command {
	var root bool
	cmd := &cobra.Command{
		Use: "ssh [NAME] [-- COMMAND [ARG...]]", Short: "Log in to a machine, or run a command in it",
		Long: `For looking after the machine itself; VMs in it are reached by banger vm exec.
COMMAND arrives word for word; its exit code is passed on.`,
		Example:           "  banger machine ssh\n  banger machine ssh --root -- journalctl -u bangerd",
		Annotations:       map[string]string{passesExitCode: "yes"},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, words []string) error {
			names, argv := words, []string(nil)
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				names, argv = words[:dash], words[dash:]
			}
			if len(names) > 1 {
				return usage(cmd, "put -- before the command")
			}
			m, err := machine.New(first(names))
			if err != nil {
				return err
			}
			exists, err := m.Exists()
			if err != nil {
				return err
			}
			if !exists {
				return api.NotFound("there is no machine %q", m.Name).WithHint("make it: banger machine init %s", m.Name)
			}
			user := machine.Owner
			if root {
				user = machine.Root
			}
			tty := isTerminal(a.In) && isTerminal(a.Out)
			return become(m.SSHCommand(context.Background(), user, tty, argv...)) // its life is not ours
		},
	}
	cmd.Flags().BoolVar(&root, "root", false, "as root, not as the user banger runs for")
	return cmd
}

// become replaces this process by cmd: signals, terminal and exit code are
// then ssh's own.
func become(cmd *exec.Cmd) error {
	if cmd.Err != nil {
		return fmt.Errorf("cannot start %s: %w", cmd.Args[0], cmd.Err)
	}
	return fmt.Errorf("cannot start %s: %w", cmd.Args[0], syscall.Exec(cmd.Path, cmd.Args, os.Environ()))
}

// steps shows the long steps of machine and system commands: one line each.
type steps struct {
	app   *App
	meter *meter
	text  string
	since time.Time
}

func (a *App) newSteps() *steps { return &steps{app: a, meter: a.newMeter("")} }

// begin ends the step before. Away from a terminal a step is told when it
// begins, so that a log shows what hangs; on one it moves up when it ends.
func (s *steps) begin(text string) {
	s.end()
	s.text, s.since = text, time.Now()
	if !s.app.talk.terminal {
		s.app.talk.note("%s", text)
		return
	}
	s.meter.set(text)
}

func (s *steps) end() {
	if s.text == "" || !s.app.talk.terminal {
		return
	}
	s.app.talk.note("%s (%.1f s)", s.text, time.Since(s.since).Seconds())
	s.text = ""
}

func (s *steps) stop(well bool) {
	s.meter.stop()
	if well {
		s.end()
	}
}
