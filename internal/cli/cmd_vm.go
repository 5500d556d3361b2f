package cli

import (
	"cmp"
	"context"
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
		a.vmRunCommand(), a.vmExecCommand(), a.vmCreateCommand(),
		a.vmStartCommand(), a.vmStopCommand(), a.vmRestartCommand(), a.vmKillCommand(),
		a.vmPauseCommand(), a.vmResumeCommand(), a.vmDeleteCommand(), a.vmPruneCommand(), a.vmSetCommand(),
		a.vmListCommand(), a.vmShowCommand(), a.vmStatsCommand(), a.vmHealthCommand(), a.vmPingCommand(),
		a.vmPortsCommand(), a.vmLogsCommand(), a.vmEventsCommand())
}

func (a *App) vmListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls", "ps"}, Short: "List the VMs",
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
			strconv.Itoa(vm.VCPU), mib(vm.MemoryMiB), cmp.Or(vm.Address, "-"), age(vm.CreatedAt)})
	}
	return a.table([]string{"NAME", "ID", "STATE", "IMAGE", "KERNEL", "VCPU", "MEMORY", "ADDRESS", "CREATED"}, rows)
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
		Use: "show NAME...", Short: "Show VMs",
		Long:              "With --json the answer is the VM, or for several a list in their order, like that of other commands with many.",
		Example:           "  banger vm show box\n  banger vm show box web --json\n  banger vm show box --timing     how long each phase of its start took",
		Args:              args(1, -1, "the name of at least one VM"),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if refs = unique(refs); len(refs) > 1 {
				return a.showVMs(cmd.Context(), c, refs, timing)
			}
			vm, err := c.VM(cmd.Context(), refs[0])
			if err != nil {
				return fmt.Errorf("cannot show %s: %w", refs[0], err)
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

// showVMs shows several, with an empty line between them.
func (a *App) showVMs(ctx context.Context, c *client.Client, refs []string, timing bool) error {
	answers := inOrder(refs, func(ref string) answer {
		vm, err := c.VM(ctx, ref)
		if err != nil {
			return answer{err: err}
		}
		return answer{VM: &vm}
	})
	return a.tellAnswers(ctx, "show ", answers, func(good []answer) error {
		for i, ans := range good {
			before := orNothing(i > 0, "\n") + orNothing(timing, ans.VM.Name+"\n")
			if _, err := fmt.Fprint(a.Out, before); err != nil {
				return err
			}
			if err := a.showVM(*ans.VM, timing); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *App) showVM(vm api.VM, timing bool) error {
	if timing {
		rows := [][]string{}
		for _, p := range vm.Timing { // the last is the whole
			rows = append(rows, []string{p.Phase, ms(p.Milliseconds)})
		}
		return a.table([]string{"PHASE", "MS"}, rows)
	}
	facts := [][2]string{{"name", vm.Name}, {"id", vm.ID}, {"state", string(vm.State)}, {"reason", vm.Reason},
		{"image", vm.Image}, {"kernel", vm.Kernel}, {"vcpu", strconv.Itoa(vm.VCPU)}, {"memory", mib(vm.MemoryMiB)},
		{"disk", orNothing(vm.DiskBytes > 0, bytesText(vm.DiskBytes))}, {"address", vm.Address},
		{"nat", strconv.FormatBool(vm.NAT)}, {"network", vm.Network},
		{"autostart", orNothing(vm.Autostart, "true")}, {"restart", string(vm.Restart)},
		{"idle stop", orNothing(vm.IdleStopSeconds > 0, (time.Duration(vm.IdleStopSeconds) * time.Second).String())},
		{"ephemeral", orNothing(vm.Ephemeral, "true")}}
	facts = append(facts, shareFacts(vm)...)
	facts = append(facts, [][2]string{{"stale", strings.Join(vm.Stale, ", ")},
		{"unit", vm.Unit}, {"created", when(vm.CreatedAt)}, {"started", when(vm.StartedAt)}}...)
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

func orNothing(known bool, text string) string {
	if !known {
		return ""
	}
	return text
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s (%s)", t.Local().Format("2006-01-02 15:04:05"), age(t))
}
