package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/client"
)

func (a *App) operationCommand() *cobra.Command {
	return group("operation", "Look at what bangerd is doing and has done",
		`Every change that takes time is an operation of bangerd. It goes on when the command that asked for it
is gone; Ctrl-C in that command cancels it. The last 512 that ended stay readable for a
day, until bangerd is restarted.`,
		a.operationListCommand(), a.operationShowCommand(), a.operationWatchCommand(), a.operationCancelCommand())
}

func (a *App) operationListCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List operations, oldest first",
		Example: "  banger operation list\n  banger operation list --running",
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			ops, err := c.Operations(cmd.Context())
			if err != nil {
				return fmt.Errorf("cannot list operations: %w", err)
			}
			return a.listOperations(ops, all)
		},
	}
	cmd.Flags().BoolVar(&all, "running", false, "only those under way")
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) listOperations(ops []api.Operation, runningOnly bool) error {
	shown := []api.Operation{}
	rows := [][]string{}
	for _, op := range ops {
		if runningOnly && client.Ended(op) {
			continue
		}
		shown = append(shown, op)
		rows = append(rows, []string{op.ID, op.Kind, op.Target, string(op.Status), age(op.Begun), took(op)})
	}
	if a.json {
		return a.printJSON(shown)
	}
	return a.table([]string{"ID", "KIND", "TARGET", "STATUS", "BEGUN", "TOOK"}, rows)
}

// took is how long an operation lasted, or has lasted so far.
func took(op api.Operation) string {
	end := op.Ended
	if end.IsZero() {
		end = time.Now()
	}
	return max(0, end.Sub(op.Begun)).Round(time.Millisecond).String()
}

func (a *App) operationShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show one operation and its stages",
		Example:           "  banger operation show op-0123456789ab",
		Args:              args(1, 1, "the id of an operation"),
		ValidArgsFunction: a.completeOperations,
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			op, err := c.Operation(cmd.Context(), ids[0])
			if err != nil {
				return fmt.Errorf("cannot show %s: %w", ids[0], err)
			}
			return a.showOperation(op)
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) showOperation(op api.Operation) error {
	if a.json {
		return a.printJSON(op)
	}
	facts := [][2]string{{"id", op.ID}, {"kind", op.Kind}, {"target", op.Target}, {"status", string(op.Status)},
		{"begun", when(op.Begun)}, {"took", took(op)}}
	if op.Error != nil {
		facts = append(facts, [2]string{"error", op.Error.Detail}, [2]string{"hint", op.Error.Hint})
	}
	for _, s := range op.Stages {
		text := stageText(s)
		if s.Milliseconds > 0 {
			text += fmt.Sprintf(" (%.0f ms)", s.Milliseconds)
		}
		facts = append(facts, [2]string{"stage", text})
	}
	return a.facts(facts)
}

func (a *App) operationWatchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "watch ID", Short: "Follow an operation to its end",
		Long:              "The exit code is that of the operation: not 0 when it failed or was cancelled. Ctrl-C\nends the watching only.",
		Example:           "  banger operation watch op-0123456789ab",
		Args:              args(1, 1, "the id of an operation"),
		ValidArgsFunction: a.completeOperations,
		Annotations:       map[string]string{endsBySignal: "yes"},
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			m := a.newMeter("")
			op, err := c.Watch(cmd.Context(), ids[0], m.show)
			m.stop()
			if err != nil {
				return fmt.Errorf("cannot watch %s: %w", ids[0], err)
			}
			if err := a.showOperation(op); err != nil {
				return err
			}
			if op.Status != api.OperationSucceeded {
				return exitError{exitFailed}
			}
			return nil
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) operationCancelCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cancel ID...", Short: "Have bangerd undo what it is doing",
		Long:              "Waits until that is done. One that has ended stays as it is.",
		Example:           "  banger operation cancel op-0123456789ab",
		Args:              args(1, -1, "the id of at least one operation"),
		ValidArgsFunction: a.completeOperations,
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			answers := inOrder(unique(ids), func(id string) answer { return cancelOperation(ctx, c, id) })
			return a.tellEach(ctx, "cancelling", "", answers)
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

func cancelOperation(ctx context.Context, c *client.Client, id string) answer {
	if err := c.CancelOperation(ctx, id); err != nil {
		return answer{err: err}
	}
	op, err := c.Watch(ctx, id, nil)
	if err == nil && op.Status != api.OperationCancelled {
		err = api.Conflict("it was too late: the operation has %s", op.Status)
	}
	return changed(op, err)
}
