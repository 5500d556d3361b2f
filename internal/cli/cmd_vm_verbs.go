package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/client"
)

func (a *App) vmStartCommand() *cobra.Command {
	var repair bool
	cmd := a.manyCommand(&cobra.Command{
		Use: "start NAME...", Short: "Start VMs that do not run",
		Example: "  banger vm start box",
	}, "starting", func(c *client.Client, ctx context.Context, ref string) (api.Operation, error) {
		return c.StartVM(ctx, ref, repair)
	})
	cmd.Flags().BoolVar(&repair, "repair", false, "mend damaged disks even if that loses files")
	return cmd
}

func (a *App) vmStopCommand() *cobra.Command {
	var timeout time.Duration
	cmd := a.manyCommand(&cobra.Command{
		Use: "stop NAME...", Short: "Shut VMs down; their disks stay",
		Long:    "Asks the guest to end, and kills the VM when it has not after the timeout.",
		Example: "  banger vm stop box\n  banger vm stop box web --timeout 5s\n  banger vm stop --all",
	}, "stopping", func(c *client.Client, ctx context.Context, ref string) (api.Operation, error) {
		return c.StopVM(ctx, ref, timeout)
	})
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "time for the guest to end, e.g. 30s (default: the daemon's)")
	a.orAll(cmd)
	return cmd
}

// orAll lets cmd, one of manyCommand, do the same to all VMs that run.
func (a *App) orAll(cmd *cobra.Command) {
	all := false
	cmd.Flags().BoolVar(&all, "all", false, "all VMs that run, instead of names")
	some, many := cmd.Args, cmd.RunE
	cmd.Args = func(cmd *cobra.Command, refs []string) error {
		switch {
		case !all:
			return some(cmd, refs)
		case len(refs) > 0:
			return usage(cmd, "give names or --all, not both")
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, refs []string) error {
		if !all {
			return many(cmd, refs)
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		vms, err := c.VMs(cmd.Context())
		if err != nil {
			return fmt.Errorf("cannot list VMs: %w", err)
		}
		for _, vm := range vms {
			if vm.State != api.StateCreated && vm.State != api.StateStopped && vm.State != api.StateFailed {
				refs = append(refs, vm.ID)
			}
		}
		if len(refs) == 0 && !a.json {
			return nil
		}
		return many(cmd, refs)
	}
}

func (a *App) vmRestartCommand() *cobra.Command {
	var timeout time.Duration
	cmd := a.manyCommand(&cobra.Command{
		Use: "restart NAME...", Short: "Shut VMs down and start them again",
		Long:    "Also how settings that wait for a restart take hold. One that does not run is started.",
		Example: "  banger vm restart box\n  banger vm restart box web --timeout 5s",
	}, "restarting", func(c *client.Client, ctx context.Context, ref string) (api.Operation, error) {
		return c.RestartVM(ctx, ref, timeout)
	})
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "time for the guest to end, e.g. 30s (default: the daemon's)")
	return cmd
}

func (a *App) vmPauseCommand() *cobra.Command {
	return a.manyCommand(&cobra.Command{
		Use: "pause NAME...", Short: "Halt VMs; they keep their memory and use no CPU",
		Long:    "A paused VM does not answer until banger vm resume; stop, kill and delete --force work.",
		Example: "  banger vm pause box",
	}, "pausing", (*client.Client).PauseVM)
}

func (a *App) vmResumeCommand() *cobra.Command {
	return a.manyCommand(&cobra.Command{
		Use: "resume NAME...", Short: "Let paused VMs go on",
		Example: "  banger vm resume box",
	}, "resuming", (*client.Client).ResumeVM)
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

// answer is what --json says of each VM of a command with many; beside Ref it
// has what the command asked for, or Error.
type answer struct {
	Ref       string         `json:"ref"`
	Operation *api.Operation `json:"operation,omitempty"`
	VM        *api.VM        `json:"vm,omitempty"`
	Stats     *api.Stats     `json:"stats,omitempty"`
	Health    *api.Health    `json:"health,omitempty"`
	Ports     *[]api.Port    `json:"ports,omitempty"`
	Error     *api.Problem   `json:"error,omitempty"`
	err       error
}

// atOnce bounds the VMs that one command works on at the same time, each of
// which takes a connection.
const atOnce = 16

// inOrder asks about all refs at once and returns the answers in their order.
// One that fails does not stop the others.
func inOrder(refs []string, ask func(ref string) answer) []answer {
	answers := make([]answer, len(refs))
	places := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i, ref := range refs {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			answers[i] = ask(ref)
			answers[i].Ref = ref
			if answers[i].err != nil {
				answers[i].Error = problemOf(answers[i].err)
			}
		})
	}
	all.Wait()
	return answers
}

// each begins the same change of all refs and follows them to their end.
func (a *App) each(ctx context.Context, c *client.Client, doing string, refs []string, do verb) error {
	meter := a.newMeter(doing + " " + strings.Join(refs, ", "))
	seen := meter.show
	if len(refs) > 1 {
		seen = nil // many at once would only flicker
	}
	answers := inOrder(refs, func(ref string) answer {
		op, err := do(c, ctx, ref)
		if err == nil {
			op, err = a.followOn(ctx, c, op, meter, seen)
		}
		return changed(op, err)
	})
	meter.stop()
	return a.tellEach(ctx, doing, "", answers)
}

// changed is the answer of a change that op made or err prevented.
func changed(op api.Operation, err error) answer {
	ans := answer{err: err}
	if op.ID != "" {
		ans.Operation = &op
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

// tellEach answers with the names of those that went well, in order.
func (a *App) tellEach(ctx context.Context, doing, kind string, answers []answer) error {
	return a.tellAnswers(ctx, infinitive(doing)+" "+kind, answers, func(good []answer) error {
		for _, ans := range good {
			if _, err := fmt.Fprintln(a.Out, ans.Ref); err != nil {
				return err
			}
		}
		return nil
	})
}

// tellAnswers says what went wrong and lets show, or JSON, tell the rest. cannot
// is what could not be done, up to the name.
func (a *App) tellAnswers(ctx context.Context, cannot string, answers []answer, show func(good []answer) error) error {
	failed := error(nil)
	good := []answer{}
	for _, ans := range answers {
		if ans.err == nil {
			good = append(good, ans)
			continue
		}
		failed = exitError{exitFailed}
		if ctx.Err() == nil {
			a.talk.fail(fmt.Errorf("cannot %s%s: %w", cannot, ans.Ref, ans.err))
		}
	}
	if a.json {
		if err := a.printJSON(some(answers)); err != nil {
			return err
		}
	} else if err := show(good); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return failed
}

func infinitive(doing string) string {
	return map[string]string{"starting": "start", "stopping": "stop", "killing": "kill", "deleting": "delete",
		"restarting": "restart", "pausing": "pause", "resuming": "resume", "pruning": "prune", "cancelling": "cancel"}[doing]
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
