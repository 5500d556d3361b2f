package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/client"
)

func (a *App) vmPruneCommand() *cobra.Command {
	var older time.Duration
	var dryRun, force bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove the VMs that do not run, and their disks",
		Long: `Removes VMs that are stopped, failed, or were never started. On a terminal it tells
which and asks; elsewhere it needs --force.`,
		Example: "  banger vm prune\n  banger vm prune --older-than 168h --dry-run\n  banger vm prune --force",
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if older < 0 || older > math.MaxInt32*time.Second {
				return usage(cmd, "--older-than %s is not possible", older)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			r := api.PruneRequest{OlderThanSeconds: int(math.Ceil(older.Seconds())), DryRun: true}
			would, err := c.PruneVMs(cmd.Context(), r)
			if err != nil {
				return fmt.Errorf("cannot prune VMs: %w", err)
			}
			if dryRun {
				return a.tellPrunable(would)
			}
			if len(would.VMs) > 0 && !force {
				if err := a.mayPrune(cmd, would.VMs); err != nil {
					return err
				}
			}
			r.DryRun = false
			r.Only = []string{} // what was shown, and nothing that ended since
			for _, vm := range would.VMs {
				r.Only = append(r.Only, vm.ID)
			}
			return a.prune(cmd.Context(), c, r)
		},
	}
	cmd.Flags().DurationVar(&older, "older-than", 0, "spare those made or started since, e.g. 24h")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only tell which")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	complete(cmd, "older-than", cobra.NoFileCompletions)
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) tellPrunable(would api.Pruned) error {
	if a.json {
		return a.printJSON(would)
	}
	for _, vm := range would.VMs {
		if _, err := fmt.Fprintln(a.Out, vm.Name); err != nil {
			return err
		}
	}
	return nil
}

func (a *App) mayPrune(cmd *cobra.Command, vms []api.VM) error {
	if !isTerminal(a.In) || !a.talk.terminal {
		return &usageError{fmt.Sprintf("%s would delete %d VMs and has no terminal to ask", cmd.CommandPath(), len(vms)), "give --force; --dry-run tells which"}
	}
	names := []string{}
	for _, vm := range vms {
		names = append(names, vm.Name)
	}
	yes, err := a.ask(cmd.Context(), fmt.Sprintf("Delete %s with all data?", strings.Join(names, ", ")))
	if err == nil && !yes {
		err = errors.New("nothing deleted")
	}
	return err
}

func (a *App) prune(ctx context.Context, c *client.Client, r api.PruneRequest) error {
	answers := []answer{}
	if len(r.Only) > 0 {
		pruned, err := c.PruneVMs(ctx, r)
		if err != nil {
			return fmt.Errorf("cannot prune VMs: %w", err)
		}
		begun := map[string]api.Operation{}
		names := []string{}
		for _, op := range pruned.Operations {
			begun[op.Target] = op
			names = append(names, op.Target)
		}
		meter := a.newMeter("deleting " + strings.Join(names, ", "))
		answers = inOrder(names, func(name string) answer { return changed(a.followOn(ctx, c, begun[name], meter, nil)) })
		meter.stop()
	}
	return a.tellEach(ctx, "pruning", "", answers)
}
