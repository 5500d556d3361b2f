package cli

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/version"
)

func (a *App) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check whether the host is fit for VMs",
		Long:    "Each check says what was found and, if it is not well, why it matters and what to do.\nThe exit code is not 0 when a check fails; warnings do not count.",
		Example: "  banger doctor\n  banger doctor --json",
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks := a.examine(cmd.Context())
			if err := cmd.Context().Err(); err != nil {
				return context.Cause(cmd.Context())
			}
			if err := a.tellChecks(checks); err != nil {
				return err
			}
			for _, c := range checks {
				if c.Status == "fail" {
					return exitError{exitFailed}
				}
			}
			return nil
		},
	}
	a.jsonFlag(cmd)
	return cmd
}

// examine asks the daemon for its checks; that it answers is the first.
func (a *App) examine(ctx context.Context) []api.Check {
	daemon := api.Check{ID: "daemon", Status: "pass"}
	fail := func(err error) []api.Check {
		p := problemOf(err)
		daemon.Status, daemon.Found, daemon.Fix = "fail", cmp.Or(err.Error(), p.Detail), p.Hint
		daemon.Why = "all work is done by bangerd"
		return []api.Check{daemon}
	}
	c, err := a.connect()
	if err != nil {
		return fail(err)
	}
	v, err := c.Version(ctx)
	if err == nil {
		err = c.SameAPI(v)
	}
	if err != nil {
		return fail(err)
	}
	daemon.Found = fmt.Sprintf("bangerd %s answers at %s", v.Version, c.Host())
	if v.Version != version.Version {
		daemon.Status = "warn"
		daemon.Why = fmt.Sprintf("this banger is %s", version.Version)
		daemon.Fix = "install both from one release: sudo banger system install"
	}
	checks, err := c.Doctor(ctx)
	if err != nil {
		return fail(err)
	}
	return append([]api.Check{daemon}, checks...)
}

func (a *App) tellChecks(checks []api.Check) error {
	if a.json {
		return a.printJSON(checks)
	}
	for _, c := range checks {
		if _, err := fmt.Fprintf(a.Out, "%-5s %-20s %s\n", c.Status, plain(c.ID), plain(c.Found)); err != nil {
			return err
		}
		for _, more := range [][2]string{{"why", c.Why}, {"fix", c.Fix}} {
			if more[1] == "" || c.Status == "pass" {
				continue
			}
			if _, err := fmt.Fprintf(a.Out, "%-5s %-20s %s: %s\n", "", "", more[0], plain(more[1])); err != nil {
				return err
			}
		}
	}
	return nil
}
