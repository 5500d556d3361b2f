package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/kernel"
)

func (a *App) kernelCommand() *cobra.Command {
	return group("kernel", "Kernels that VMs boot",
		`A guest kernel is an ordinary Linux kernel; those of distributions work, with
the modules they need for a virtual machine.

The common case: the host's own, imported by banger system install.`,
		a.kernelImportCommand(), a.kernelListCommand(), a.kernelDeleteCommand())
}

func (a *App) kernelImportCommand() *cobra.Command {
	var from, modules string
	cmd := &cobra.Command{
		Use: "import NAME --from FILE [--modules DIR]", Short: "Import a guest kernel",
		Long: `FILE is a bzImage, as in /boot, or an uncompressed ELF. DIR is its directory of
modules; without it the kernel must have all it needs built in.`,
		Example: "  banger kernel import debian --from /boot/vmlinuz-$(uname -r) --modules /lib/modules/$(uname -r)",
		Args:    args(1, 1, "a name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := validImportName(args[0]); err != nil {
				return err
			}
			if from == "" {
				return usage(cmd, "--from is missing: the file of the kernel")
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.tellImport(cmd.Context(), c, "kernel", importing{
				spec:  api.ImportSpec{Name: args[0]},
				begin: c.ImportKernel,
				data:  func(ctx context.Context, w io.Writer) error { return kernel.Pack(ctx, w, from, modules) },
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "file of the kernel")
	f.StringVar(&modules, "modules", "", "directory of its modules, /lib/modules/RELEASE")
	complete(cmd, "modules", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveFilterDirs
	})
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) kernelListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the guest kernels",
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			kernels, err := c.Kernels(cmd.Context())
			if err != nil {
				return fmt.Errorf("cannot list kernels: %w", err)
			}
			if a.json {
				return a.printJSON(some(kernels))
			}
			rows := [][]string{}
			for _, k := range kernels {
				rows = append(rows, []string{k.Name, k.Release, bytesText(k.Size), strconv.Itoa(len(k.Modules)), age(k.ImportedAt), usedBy(k.UsedBy)})
			}
			return a.table([]string{"NAME", "RELEASE", "SIZE", "MODULES", "IMPORTED", "USED BY"}, rows)
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) kernelDeleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Remove kernels that no VM uses",
		Args:              args(1, -1, "the name of at least one kernel"),
		ValidArgsFunction: a.completeKernels,
		RunE: func(cmd *cobra.Command, names []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.deleteEach(cmd, "kernel", names, c.DeleteKernel)
		},
	}
	a.jsonFlag(cmd)
	return cmd
}
