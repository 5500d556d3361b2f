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
		`Changing the installation needs root; nothing else of banger does. What is
changed is printed.

The common case: sudo banger system install --owner $USER`,
		a.systemInstallCommand(), a.systemUpgradeCommand(), a.systemStatusCommand(),
		a.systemRestartCommand(), a.systemUninstallCommand())
}

func (a *App) systemInstallCommand() *cobra.Command {
	var o install.Options
	cmd := &cobra.Command{
		Use: "install --owner USER", Short: "Install or update banger on this host",
		Long: `Puts the programs in place, makes the systemd units, reserves user ids for the
VMs, starts the daemon for USER and gives it the host's own kernel for guests.
Run again it brings an older installation up to this banger; VMs keep running.
Of a banger that came as a package, programs and units are there already.

Nothing that somebody else wrote, or changed since, is overwritten: install
refuses and names it. Bridge and network can be changed while no VM runs.`,
		Example: "  sudo banger system install --owner $USER\n  sudo banger system install --network 10.213.0.1/16",
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
	cmd.Flags().StringVar(&o.Bridge, "bridge", "", "name of the VMs' bridge (default: the one there is, else "+installed.DefaultBridge+")")
	cmd.Flags().StringVar(&o.Network, "network", "", "the bridge's address and the VMs' network (default: the one there is, else "+installed.DefaultNetwork+")")
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

func (a *App) systemUpgradeCommand() *cobra.Command {
	var o install.Options
	cmd := &cobra.Command{
		Use: "upgrade", Short: "Bring an installed banger up to this one",
		Long: `Replaces the programs and units that differ and restarts the services they
belong to. VMs keep running, and the owner stays who it is.`,
		Example: "  sudo build/bin/banger system upgrade",
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = a.Out
			o.ImportKernel = a.importHostKernel
			return install.Upgrade(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.From, "from", "", "directory of the programs to install (default: beside this one)")
	return cmd
}

func (a *App) systemRestartCommand() *cobra.Command {
	return &cobra.Command{
		Use: "restart", Short: "Restart banger's services",
		Long:    "VMs are no part of the services and keep running, with what is open into them.",
		Example: "  sudo banger system restart",
		Args:    args(0, 0, "no arguments"),
		RunE:    func(cmd *cobra.Command, _ []string) error { return install.Restart(cmd.Context(), a.Out) },
	}
}

func (a *App) systemUninstallCommand() *cobra.Command {
	var o install.UninstallOptions
	var force bool
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Remove banger from this host",
		Long: `Ends all VMs and removes what install made, and nothing else. VMs' disks, images,
kernels and settings stay for a later installation; with --purge they go too.
A file that was changed since stays and is named. So do the programs of a
package, which the package manager removes. Asks first when on a terminal.`,
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
