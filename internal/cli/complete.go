package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/client"
)

// completeTime is how long a person who pressed tab is kept waiting.
const completeTime = time.Second

// complete registers f for a flag that the same function defined.
func complete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // only a flag that is not there
	}
}

// names offers live names. With no daemon it offers nothing, above all no files.
func (a *App) names(given []string, list func(context.Context, *client.Client) []string) ([]string, cobra.ShellCompDirective) {
	c, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, done := context.WithTimeout(context.Background(), completeTime)
	defer done()
	all := list(ctx, c)
	return slices.DeleteFunc(all, func(n string) bool { return slices.Contains(given, n) }), cobra.ShellCompDirectiveNoFileComp
}

func (a *App) completeVMs(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(given) > 0 && !strings.Contains(cmd.Use, "NAME...") { // takes one
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.names(given, func(ctx context.Context, c *client.Client) (out []string) {
		vms, _ := c.VMs(ctx) // nothing to offer then
		for _, vm := range vms {
			out = append(out, vm.Name)
		}
		return out
	})
}

func (a *App) completeImages(_ *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.names(given, func(ctx context.Context, c *client.Client) (out []string) {
		images, _ := c.Images(ctx) // nothing to offer then
		for _, i := range images {
			out = append(out, i.Name)
		}
		return out
	})
}

func (a *App) completeKernels(_ *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.names(given, func(ctx context.Context, c *client.Client) (out []string) {
		kernels, _ := c.Kernels(ctx) // nothing to offer then
		for _, k := range kernels {
			out = append(out, k.Name)
		}
		return out
	})
}

func (a *App) completeOperations(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(given) > 0 && !strings.Contains(cmd.Use, "ID...") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.names(given, func(ctx context.Context, c *client.Client) (out []string) {
		ops, _ := c.Operations(ctx) // nothing to offer then
		for _, op := range ops {
			out = append(out, op.ID+"\t"+op.Kind+" "+op.Target)
		}
		return out
	})
}

// completePolicies offers what --restart takes.
func completePolicies(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return policies, cobra.ShellCompDirectiveNoFileComp
}
