package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"banger/client"
)

func (a *App) vmHealthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "health NAME...", Short: "Ask the guests how they are",
		Long:    "Asks banger's agent in each guest. The exit code is not 0 when one does not answer.",
		Example: "  banger vm health box\n  banger vm health box web --json",
	}
	return a.askCommand(cmd, "reach ", askHealth, func(good []answer) error {
		rows := [][]string{}
		for _, ans := range good {
			h := ans.Health
			rows = append(rows, []string{h.Name, h.Phase, ms(h.Milliseconds), h.Guest.Kernel, h.Guest.Init, h.Guest.Agent})
		}
		return a.tableOf([]string{"NAME", "PHASE", "MS", "KERNEL", "INIT", "AGENT"}, rows)
	})
}

func askHealth(ctx context.Context, c *client.Client, ref string) answer {
	h, err := c.Health(ctx, ref)
	return answer{Health: &h, err: err}
}

func ms(f float64) string { return fmt.Sprintf("%.1f", f) }

// tableOf is table, but nothing for no rows: then something else has been said.
func (a *App) tableOf(head []string, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	return a.table(head, rows)
}

func (a *App) vmPortsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ports NAME...", Short: "List what listens in guests",
		Example: "  banger vm ports box\n  banger vm ports box web --json",
	}
	return a.askCommand(cmd, "ask for the ports of ", func(ctx context.Context, c *client.Client, ref string) answer {
		ports, err := c.Ports(ctx, ref)
		ports = some(ports)
		return answer{Ports: &ports, err: err}
	}, func(good []answer) error {
		rows := [][]string{}
		for _, ans := range good {
			for _, p := range *ans.Ports {
				rows = append(rows, []string{ans.Ref, p.Protocol, p.Address, strconv.Itoa(p.Port), p.Process})
			}
		}
		if len(good) == 0 {
			return nil
		}
		return a.table([]string{"NAME", "PROTOCOL", "ADDRESS", "PORT", "PROCESS"}, rows)
	})
}

// askCommand completes cmd to one that asks about each VM named.
func (a *App) askCommand(cmd *cobra.Command, cannot string, ask func(context.Context, *client.Client, string) answer, show func([]answer) error) *cobra.Command {
	cmd.Args = args(1, -1, "the name of at least one VM")
	cmd.ValidArgsFunction = a.completeVMs
	cmd.RunE = func(cmd *cobra.Command, refs []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		ctx := cmd.Context()
		answers := inOrder(unique(refs), func(ref string) answer { return onlyGood(ask(ctx, c, ref)) })
		return a.tellAnswers(ctx, cannot, answers, show)
	}
	a.jsonFlag(cmd)
	return cmd
}

// onlyGood leaves out the empty answer beside an error.
func onlyGood(ans answer) answer {
	if ans.err != nil {
		return answer{err: ans.err}
	}
	return ans
}

func (a *App) vmPingCommand() *cobra.Command {
	var count int
	var interval time.Duration
	cmd := &cobra.Command{
		Use: "ping NAME...", Short: "See whether guests answer, and how fast",
		Long:              "Asks banger's agent, not the network. The exit code is not 0 when one did not answer.",
		Example:           "  banger vm ping box\n  banger vm ping box web -c 5",
		Args:              args(1, -1, "the name of at least one VM"),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			if count < 1 || interval <= 0 {
				return usage(cmd, "--count and --interval must be more than 0")
			}
			return a.ping(cmd.Context(), unique(refs), count, interval)
		},
	}
	cmd.Flags().IntVarP(&count, "count", "c", 1, "ask so many times")
	cmd.Flags().DurationVarP(&interval, "interval", "i", time.Second, "time from one question to the next")
	for _, free := range []string{"count", "interval"} {
		complete(cmd, free, cobra.NoFileCompletions)
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) ping(ctx context.Context, refs []string, count int, interval time.Duration) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	next := time.NewTicker(interval)
	defer next.Stop()
	failed := error(nil)
	for round := range count {
		if round > 0 {
			select {
			case <-next.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		answers := inOrder(refs, func(ref string) answer { return onlyGood(askHealth(ctx, c, ref)) })
		err := a.tellAnswers(ctx, "reach ", answers, func(good []answer) error {
			for _, ans := range good {
				if _, err := fmt.Fprintf(a.Out, "%s: %s ms\n", ans.Health.Name, ms(ans.Health.Milliseconds)); err != nil {
					return err
				}
			}
			return nil
		})
		if exit, ok := errors.AsType[exitError](err); ok && exit.code == exitFailed {
			failed = err // the others, and the next time, may be better
		} else if err != nil {
			return err
		}
	}
	return failed
}
