package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/client"
	"banger/internal/doctor"
	"banger/internal/install"
	"banger/internal/installed"
	"banger/internal/paths"
	"banger/internal/version"
)

// Exit codes of doctor, which are about the host and not about the command.
const (
	exitWarnings = 1
	exitFailures = 2
)

func (a *App) doctorCommand() *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check whether the host is fit for VMs",
		Long: `Each check says what was found and, if it is not well, why it matters and what to do.
The exit code is 0 when all is well, 1 when there are warnings, 2 when a check failed.

With --fix, bangerd mends what it can without anybody's loss: it removes what is left
of VMs that no longer exist, and makes a missing bridge. What is done is said first.`,
		Example: "  banger doctor\n  banger doctor --fix\n  banger doctor --json",
		Args:    args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, checks := a.examine(cmd.Context())
			if repair && c != nil {
				checks = a.repair(cmd.Context(), c, checks)
			}
			if err := cmd.Context().Err(); err != nil {
				return context.Cause(cmd.Context())
			}
			if err := a.tellChecks(checks); err != nil {
				return err
			}
			switch worst(checks) {
			case api.CheckFail:
				return exitError{exitFailures}
			case api.CheckWarn:
				return exitError{exitWarnings}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&repair, "fix", false, "mend what can be mended safely")
	a.jsonFlag(cmd)
	return cmd
}

func worst(checks []api.Check) api.CheckStatus {
	found := api.CheckPass
	for _, c := range checks {
		switch {
		case c.Status == api.CheckFail:
			return api.CheckFail
		case c.Status != api.CheckPass: // also what a newer daemon may say
			found = api.CheckWarn
		}
	}
	return found
}

// examine asks the daemon for its checks; that it answers is the first. The
// client is nil if it does not, and then a local host is looked at from here.
func (a *App) examine(ctx context.Context) (*client.Client, []api.Check) {
	daemon := api.Check{ID: "daemon", Status: api.CheckPass, Why: "all work is done by bangerd"}
	fail := func(host string, err error) (*client.Client, []api.Check) {
		p := problemOf(err)
		daemon.Status, daemon.Found, daemon.Fix = api.CheckFail, cmp.Or(err.Error(), p.Detail), p.Hint
		checks := []api.Check{daemon}
		here := host == "unix://"+paths.DaemonSocket || host == "" && a.host == "" && a.Getenv("BANGER_HOST") == ""
		if here {
			checks = append(checks, lookFromHere(ctx)...)
		}
		return nil, checks
	}
	c, err := a.connect()
	if err != nil {
		return fail("", err)
	}
	v, err := c.Version(ctx)
	if err == nil {
		err = c.SameAPI(v)
	}
	if err != nil {
		return fail(c.Host(), err)
	}
	daemon.Found = fmt.Sprintf("bangerd %s answers at %s", v.Version, c.Host())
	if v.Version != version.Version {
		daemon.Status = api.CheckWarn
		daemon.Found += fmt.Sprintf(", this banger is %s", version.Version)
		daemon.Fix = "install both from one release: sudo banger system install"
	}
	checks, err := c.Doctor(ctx)
	if err != nil {
		return fail(c.Host(), err)
	}
	return c, append([]api.Check{daemon}, checks...)
}

// hereTime is how long a look at this host's files may take.
const hereTime = 5 * time.Second

// lookFromHere asks what needs neither bangerd nor rights.
func lookFromHere(ctx context.Context) []api.Check {
	const id, why = "installation", "without it there are no VMs"
	r, err := installed.Load(paths.InstallFile)
	if err != nil {
		found := doctor.Fail("look at "+paths.InstallFile, "%v", err)
		if errors.Is(err, fs.ErrNotExist) {
			found = doctor.Fail("sudo banger system install --owner $USER", "banger is not installed on this host")
		}
		questions := append([]doctor.Question{doctor.One(id, why, func(context.Context) doctor.Finding { return found })},
			doctor.ThisHost(r, nil).Questions()...)
		return doctor.Ask(ctx, hereTime, questions)
	}
	units, err := install.UnitTexts(r)
	if err != nil {
		return doctor.Ask(ctx, hereTime, []doctor.Question{doctor.One(id, why, func(context.Context) doctor.Finding { return doctor.Fail("", "%v", err) })})
	}
	h := doctor.ThisHost(r, units)
	return doctor.Ask(ctx, hereTime, append(h.Questions(), h.InstallationQuestions()...))
}

// repair has done what the checks offer, saying so before and after, and
// returns the checks as they are then.
func (a *App) repair(ctx context.Context, c *client.Client, checks []api.Check) []api.Check {
	var ids []string
	for _, check := range checks {
		if check.Repair != "" {
			a.talk.note("%s: going to %s", check.ID, check.Repair)
			ids = append(ids, check.ID)
		}
	}
	if len(ids) == 0 {
		a.talk.note("there is nothing that can be mended from here")
		return checks
	}
	after, err := c.Repair(ctx, api.RepairRequest{Checks: ids})
	if err != nil {
		a.talk.fail(err)
		return checks
	}
	byID := map[string]api.Check{}
	for _, check := range after {
		byID[check.ID] = check
		a.talk.note("%s: now %s: %s", check.ID, check.Status, check.Found)
	}
	for i, check := range checks {
		if now, ok := byID[check.ID]; ok {
			checks[i] = now
		}
	}
	return checks
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
			if more[1] == "" || c.Status == api.CheckPass {
				continue
			}
			if _, err := fmt.Fprintf(a.Out, "%-5s %-20s %s: %s\n", "", "", more[0], plain(more[1])); err != nil {
				return err
			}
		}
	}
	return nil
}
