package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/client"
	"banger/internal/install"
	"banger/internal/installed"
	"banger/internal/kernel"
	"banger/internal/paths"
)

func (a *App) systemCommand() *cobra.Command {
	return group("system", "Install banger on this host, or remove it",
		`Installing needs root; nothing else of banger does. What is changed is printed.

The common case: sudo banger system install --owner $USER`,
		a.systemInstallCommand(), a.systemUninstallCommand())
}

func (a *App) systemInstallCommand() *cobra.Command {
	var o install.Options
	cmd := &cobra.Command{
		Use: "install --owner USER", Short: "Install or update banger on this host",
		Long: `Puts the programs in place, makes the systemd units, reserves user ids for the
VMs, starts the daemon for USER and gives it the host's own kernel for guests.
Run again it brings an older installation up to this banger; VMs keep running.`,
		Example: "  sudo banger system install --owner $USER",
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Owner == "" {
				owner, err := a.likelyOwner(paths.InstallFile)
				if err != nil {
					return err
				}
				o.Owner = owner
			}
			o.Out = a.Out
			o.ImportKernel = a.importHostKernel
			return install.Install(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.Owner, "owner", "", "the user banger is for (default: who it is installed for, else who called sudo)")
	cmd.Flags().StringVar(&o.From, "from", "", "directory of the programs to install (default: beside this one)")
	return cmd
}

// likelyOwner is who an update keeps and who else asked for the install.
func (a *App) likelyOwner(record string) (string, error) {
	r, err := installed.Load(record)
	if err == nil {
		return r.Owner, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if user := a.Getenv("SUDO_USER"); user != "root" {
		return user, nil
	}
	return "", nil // Install says what is missing
}

// importHostKernel gives the new daemon its first kernel.
func (a *App) importHostKernel(ctx context.Context, kernelFile, modulesDir string) error {
	c, err := client.New("")
	if err != nil {
		return err
	}
	_, err = a.runImport(ctx, c, importing{
		spec:  api.ImportSpec{Name: install.DefaultKernel},
		begin: c.ImportKernel,
		data:  func(ctx context.Context, w io.Writer) error { return kernel.Pack(ctx, w, kernelFile, modulesDir) },
	})
	return err
}

func (a *App) systemUninstallCommand() *cobra.Command {
	var o install.UninstallOptions
	var force bool
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Remove banger from this host",
		Long: `Ends all VMs and removes what install made. VMs' disks, images, kernels and
settings stay for a later installation; with --purge they go too.
Asks first when on a terminal.`,
		Example: "  sudo banger system uninstall\n  sudo banger system uninstall --purge",
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force && isTerminal(a.In) && a.talk.terminal {
				question := "End all VMs and remove banger?"
				if o.Purge {
					question = "End all VMs and remove banger with all VMs, images and kernels?"
				}
				yes, err := a.ask(cmd.Context(), question)
				if err != nil {
					return err
				}
				if !yes {
					return fmt.Errorf("nothing removed")
				}
			}
			o.Out = a.Out
			return install.Uninstall(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVar(&o.Purge, "purge", false, "also remove all VMs, images, kernels and settings")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}
