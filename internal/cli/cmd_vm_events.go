package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/client"
)

func (a *App) vmEventsCommand() *cobra.Command {
	q := client.EventQuery{}
	var since int64
	cmd := &cobra.Command{
		Use: "events [NAME]", Short: "Tell what happened to VMs lately",
		Long: `Tells the changes of all VMs, or of one, that bangerd remembers: the last thousand
since it was started. With -f it goes on with those to come; for one VM, until it is
deleted. Whoever reads too slowly, or is there while bangerd restarts, is told that
something was missed, and how all VMs are then.`,
		Example:           "  banger vm events\n  banger vm events box -f\n  banger vm events -f --json     one object per line",
		Args:              args(0, 1, "the name of a VM"),
		ValidArgsFunction: a.completeVMs,
		Annotations:       map[string]string{endsBySignal: "yes"},
		RunE: func(cmd *cobra.Command, refs []string) error {
			if since < 0 {
				return usage(cmd, "--since is %d, and must be the number of an event", since)
			}
			q.Since = &since
			if len(refs) > 0 {
				q.VM = refs[0]
			}
			return a.events(cmd.Context(), q)
		},
	}
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "wait for more")
	cmd.Flags().Int64Var(&since, "since", 0, "number of the last event already seen, as --json has it")
	complete(cmd, "since", cobra.NoFileCompletions)
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) events(ctx context.Context, q client.EventQuery) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	err = c.Events(ctx, q, func(e api.Event) error {
		if a.json {
			raw, err := json.Marshal(e)
			if err == nil {
				_, err = a.Out.Write(append(raw, '\n'))
			}
			return err
		}
		if e.Kind == api.EventMissed {
			a.talk.note("some events were missed; the VMs are now:")
			return nil
		}
		_, err := fmt.Fprintln(a.Out, eventText(e))
		return err
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("cannot tell events: %w", err)
	}
	return nil
}

func eventText(e api.Event) string {
	what := string(e.State)
	switch e.Kind {
	case api.EventSnapshot:
		what = "is " + what
	case api.EventRenamed, api.EventChanged:
		what = string(e.Kind)
	}
	text := e.At.Local().Format("2006-01-02 15:04:05.000") + "  " + e.ID + "  " + e.Name + "  " + what
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return strings.ReplaceAll(plain(text), "\n", " ")
}
