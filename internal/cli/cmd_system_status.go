package cli

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/install"
)

func (a *App) systemStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show what is installed and whether it runs",
		Long: `Shows version, owner, services, the user ids of VMs, and what was changed by hand
since the installation. Needs no rights. The exit code is not 0 when banger is
not installed, an installation was cut off, or a service is down.`,
		Example: "  banger system status\n  banger system status --json",
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := install.Examine(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.tellStatus(s); err != nil {
				return err
			}
			if !s.Healthy() {
				return exitError{exitFailed}
			}
			return nil
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) tellStatus(s install.Status) error {
	if a.json {
		return a.printJSON(s)
	}
	for _, line := range statusLines(s) {
		if _, err := fmt.Fprintf(a.Out, "%-10s %s\n", line[0], plain(line[1])); err != nil {
			return err
		}
	}
	return nil
}

// statusLines are pairs of a name, empty in a list's further lines, and a text.
func statusLines(s install.Status) (lines [][2]string) {
	add := func(name, format string, args ...any) {
		lines = append(lines, [2]string{name, fmt.Sprintf(format, args...)})
	}
	if !s.Installed {
		add("installed", "no")
		for i, path := range s.Left {
			add(firstOnly(i, "left"), "%s", path)
		}
		return lines
	}
	add("version", "%s", s.Version)
	if s.Program != s.Version {
		add("", "this banger is %s: sudo banger system upgrade", s.Program)
	}
	from := "banger system install"
	if s.Packaged {
		from = "a package"
	}
	add("programs", "%s, from %s", s.Programs, from)
	add("owner", "%s (uid %d)", s.Owner, s.UID)
	add("uids", "%d to %d for VMs", s.UIDBase, s.UIDBase+s.UIDCount-1)
	add("network", "%s on %s", s.Network, s.Bridge)
	if s.Socket.Present {
		add("socket", "%s (uid %d, mode %s)", s.Socket.Path, s.Socket.UID, s.Socket.Mode)
	} else {
		add("socket", "%s is not there", s.Socket.Path)
	}
	for i, u := range s.Services {
		mark := ""
		if u.Needed && u.Active != "active" {
			mark = "  <- should be active"
		}
		add(firstOnly(i, "services"), "%-22s %s, %s%s", u.Unit, u.Active, cmp.Or(u.Enabled, "not there"), mark)
	}
	add("VMs", "%d running", s.VMs)
	if s.Unfinished {
		add("unfinished", "an installation was cut off: sudo banger system upgrade")
	}
	for i, c := range s.Changed {
		add(firstOnly(i, "by hand"), "%s: %s", c.Path, c.What)
	}
	return lines
}

func firstOnly(i int, name string) string {
	if i > 0 {
		return ""
	}
	return name
}
