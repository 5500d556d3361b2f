package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/client"
)

func (a *App) vmCommand() *cobra.Command {
	return group("vm", "Make, use and remove virtual machines",
		`A VM is a Firecracker microVM of its own: kernel, root disk, process tree. It is
named by its name, its id, or a beginning of the id that only it has.

The common case: banger vm run --rm -- COMMAND`,
		a.vmRunCommand(), a.vmExecCommand(), a.vmCreateCommand(), a.vmStartCommand(),
		a.vmListCommand(), a.vmShowCommand(), a.vmStopCommand(), a.vmKillCommand(), a.vmDeleteCommand())
}

func (a *App) vmListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the VMs",
		Example: "  banger vm list\n  banger vm list --json",
		Args:    args(0, 0, "no arguments"),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.listVMs(cmd.Context()) },
	}
	a.jsonFlag(cmd)
	return cmd
}

// psCommand is the one shortcut people's fingers know.
func (a *App) psCommand() *cobra.Command {
	cmd := a.vmListCommand()
	cmd.Use, cmd.Aliases = "ps", nil
	cmd.Short = "List the VMs (short for vm list)"
	return cmd
}

func (a *App) listVMs(ctx context.Context) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	vms, err := c.VMs(ctx)
	if err != nil {
		return fmt.Errorf("cannot list VMs: %w", err)
	}
	slices.SortFunc(vms, func(x, y api.VM) int {
		return cmp.Or(x.CreatedAt.Compare(y.CreatedAt), strings.Compare(x.Name, y.Name))
	})
	if a.json {
		return a.printJSON(some(vms))
	}
	rows := [][]string{}
	for _, vm := range vms {
		rows = append(rows, []string{vm.Name, vm.ID, string(vm.State), vm.Image, vm.Kernel,
			strconv.Itoa(vm.VCPU), mib(vm.MemoryMiB), age(vm.CreatedAt)})
	}
	return a.table([]string{"NAME", "ID", "STATE", "IMAGE", "KERNEL", "VCPU", "MEMORY", "CREATED"}, rows)
}

// some makes an empty list [] in JSON and not null.
func some[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func mib(n int) string { return bytesText(int64(n) << 20) }

func (a *App) vmShowCommand() *cobra.Command {
	var timing bool
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show one VM",
		Example:           "  banger vm show box\n  banger vm show box --timing     how long each phase of its start took",
		Args:              args(1, 1, "the name of a VM"),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			vm, err := c.VM(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("cannot show %s: %w", args[0], err)
			}
			if a.json {
				return a.printJSON(vm)
			}
			return a.showVM(vm, timing)
		},
	}
	cmd.Flags().BoolVar(&timing, "timing", false, "show the phases of the last start")
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) showVM(vm api.VM, timing bool) error {
	if timing {
		rows := [][]string{}
		total := 0.0
		for _, p := range vm.Timing {
			rows = append(rows, []string{p.Phase, fmt.Sprintf("%.1f", p.Milliseconds)})
			total += p.Milliseconds
		}
		return a.table([]string{"PHASE", "MS"}, append(rows, []string{"total", fmt.Sprintf("%.1f", total)}))
	}
	facts := [][2]string{{"name", vm.Name}, {"id", vm.ID}, {"state", string(vm.State)}, {"reason", vm.Reason},
		{"image", vm.Image}, {"kernel", vm.Kernel}, {"vcpu", strconv.Itoa(vm.VCPU)}, {"memory", mib(vm.MemoryMiB)},
		{"unit", vm.Unit}, {"created", when(vm.CreatedAt)}, {"started", when(vm.StartedAt)}}
	if g := vm.Guest; g != nil {
		facts = append(facts, [2]string{"guest kernel", g.Kernel}, [2]string{"guest init", g.Init},
			[2]string{"boot id", g.BootID}, [2]string{"agent", g.Agent})
	}
	return a.facts(facts)
}

// facts prints name and value on a line each, leaving out what is unknown.
func (a *App) facts(facts [][2]string) error {
	for _, f := range facts {
		if f[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(a.Out, "%-13s %s\n", f[0], plain(f[1])); err != nil {
			return err
		}
	}
	return nil
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s (%s)", t.Local().Format("2006-01-02 15:04:05"), age(t))
}

func (a *App) vmStartCommand() *cobra.Command {
	return a.manyCommand(&cobra.Command{
		Use: "start NAME...", Short: "Start VMs that do not run",
		Example: "  banger vm start box",
	}, "starting", (*client.Client).StartVM)
}

func (a *App) vmStopCommand() *cobra.Command {
	var timeout time.Duration
	cmd := a.manyCommand(&cobra.Command{
		Use: "stop NAME...", Short: "Shut VMs down; their disks stay",
		Long:    "Asks the guest to end, and kills the VM when it has not after the timeout.",
		Example: "  banger vm stop box\n  banger vm stop box web --timeout 5s",
	}, "stopping", func(c *client.Client, ctx context.Context, ref string) (api.Operation, error) {
		return c.StopVM(ctx, ref, timeout)
	})
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "time for the guest to end, e.g. 30s (default: the daemon's)")
	return cmd
}

func (a *App) vmKillCommand() *cobra.Command {
	return a.manyCommand(&cobra.Command{
		Use: "kill NAME...", Short: "End VMs at once, as if the power failed",
		Example: "  banger vm kill box",
	}, "killing", (*client.Client).KillVM)
}

func (a *App) vmDeleteCommand() *cobra.Command {
	var force bool
	cmd := a.manyCommand(&cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Remove VMs and their disks",
		Long:    "A VM that runs is only removed with --force, or after a yes on the terminal.",
		Example: "  banger vm delete box\n  banger vm delete --force box web",
	}, "deleting", func(c *client.Client, ctx context.Context, ref string) (api.Operation, error) {
		return c.DeleteVM(ctx, ref, force)
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also when it runs")
	many := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, refs []string) error {
		if !force {
			yes, err := a.mayDeleteRunning(cmd.Context(), refs)
			if err != nil {
				return err
			}
			force = yes
		}
		return many(cmd, refs)
	}
	return cmd
}

// mayDeleteRunning asks about the VMs among refs that run. Without a terminal
// it says no and the daemon refuses those.
func (a *App) mayDeleteRunning(ctx context.Context, refs []string) (bool, error) {
	if !isTerminal(a.In) || !a.talk.terminal {
		return false, nil
	}
	c, err := a.connect()
	if err != nil {
		return false, err
	}
	running := []string{}
	for _, ref := range refs {
		vm, err := c.VM(ctx, ref)
		if err == nil && vm.State != api.StateCreated && vm.State != api.StateStopped && vm.State != api.StateFailed {
			running = append(running, vm.Name)
		}
	}
	if len(running) == 0 {
		return false, nil
	}
	yes, err := a.ask(ctx, fmt.Sprintf("%s still running. Delete with all data?", isAre(running)))
	if err == nil && !yes {
		err = errors.New("nothing deleted")
	}
	return yes, err
}

func isAre(names []string) string {
	if len(names) == 1 {
		return names[0] + " is"
	}
	return strings.Join(names, ", ") + " are"
}

// verb begins a change of one VM.
type verb func(c *client.Client, ctx context.Context, ref string) (api.Operation, error)

// manyCommand completes cmd to one that does the same to each VM named.
func (a *App) manyCommand(cmd *cobra.Command, doing string, do verb) *cobra.Command {
	cmd.Args = args(1, -1, "the name of at least one VM")
	cmd.ValidArgsFunction = a.completeVMs
	cmd.RunE = func(cmd *cobra.Command, refs []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		return a.each(cmd.Context(), c, doing, unique(refs), do)
	}
	a.jsonFlag(cmd)
	return cmd
}

// answer is what --json says of each VM of a command with many.
type answer struct {
	Ref       string         `json:"ref"`
	Operation *api.Operation `json:"operation,omitempty"`
	Error     *api.Problem   `json:"error,omitempty"`
	err       error
}

// each does the same to all refs at once and answers in their order. One that
// fails does not stop the others.
func (a *App) each(ctx context.Context, c *client.Client, doing string, refs []string, do verb) error {
	meter := a.newMeter(doing + " " + strings.Join(refs, ", "))
	seen := meter.show
	if len(refs) > 1 {
		seen = nil // many at once would only flicker
	}
	pending := []chan answer{}
	for _, ref := range refs {
		ch := make(chan answer, 1)
		pending = append(pending, ch)
		go func() {
			op, err := do(c, ctx, ref)
			if err == nil {
				op, err = a.followOn(ctx, c, op, meter, seen)
			}
			ch <- answered(ref, op, err)
		}()
	}
	answers := []answer{}
	for _, ch := range pending {
		answers = append(answers, <-ch)
	}
	meter.stop()
	return a.tellEach(ctx, doing, "", answers)
}

func answered(ref string, op api.Operation, err error) answer {
	ans := answer{Ref: ref, err: err}
	if op.ID != "" {
		ans.Operation = &op
	}
	if err != nil {
		ans.Error = problemOf(err)
	}
	return ans
}

// problemOf makes any error fit for JSON.
func problemOf(err error) *api.Problem {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p
	}
	return api.Internal("%v", err)
}

func (a *App) tellEach(ctx context.Context, doing, kind string, answers []answer) error {
	failed := error(nil)
	for _, ans := range answers {
		switch {
		case ans.err != nil:
			failed = exitError{exitFailed}
			if ctx.Err() == nil {
				a.talk.fail(fmt.Errorf("cannot %s %s%s: %w", infinitive(doing), kind, ans.Ref, ans.err))
			}
		case !a.json:
			if _, err := fmt.Fprintln(a.Out, ans.Ref); err != nil {
				return err
			}
		}
	}
	if a.json {
		if err := a.printJSON(some(answers)); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return failed
}

func infinitive(doing string) string {
	return map[string]string{"starting": "start", "stopping": "stop", "killing": "kill", "deleting": "delete"}[doing]
}

// unique drops repeated names and keeps the order.
func unique(refs []string) []string {
	out := []string{}
	for _, r := range refs {
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}
