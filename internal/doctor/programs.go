package doctor

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"banger/api"
	"banger/internal/install"
)

// releases are what Firecracker and jailer say they are.
type releases struct{ firecracker, jailer string }

// firecrackerQuestion gives two checks, since both ask the same programs.
func (h Host) firecrackerQuestion() Question {
	const id, why = "firecracker", "VMs run in it"
	return Question{ID: id, Why: why, Ask: func(ctx context.Context) []api.Check {
		var r releases
		var err, jailerErr error
		r.firecracker, err = h.checkProgram(ctx, h.Record.Firecracker, h.Record.FirecrackerSHA256, "Firecracker")
		r.jailer, jailerErr = h.checkProgram(ctx, h.Record.Jailer, h.Record.JailerSHA256, "Jailer")
		return []api.Check{
			judgeReleases(r, errors.Join(err, jailerErr)).check(id, why),
			advisories(r.firecracker).check("advisories", "a guest may get out by a known way"),
		}
	}}
}

func judgeReleases(r releases, err error) Finding {
	switch {
	case err != nil:
		return Fail(reinstall, "%s", oneLine(err.Error()))
	case r.firecracker != r.jailer:
		return Fail("install both from one release", "firecracker is %s, jailer is %s", r.firecracker, r.jailer)
	}
	return Pass("%s, as installed, with the jailer of that release", r.firecracker)
}

// versionTime is how long a program may take to say its version.
const versionTime = 10 * time.Second

// checkProgram compares a program with what was recorded when it was installed
// and asks its version.
func (h Host) checkProgram(ctx context.Context, path, wantSum, name string) (string, error) {
	sum, err := install.HashFile(h.at(path))
	if err != nil {
		return "", err
	}
	if sum != wantSum {
		return "", fmt.Errorf("%s is not what was installed: sha256 %s, recorded %q", path, sum, wantSum)
	}
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.at(path), "--version")
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cannot ask %s for its version: %w", path, err)
	}
	return parseVersion(string(out), name)
}

// parseVersion finds "Firecracker v1.12.1" among whatever else is printed.
func parseVersion(out, name string) (string, error) {
	const form = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.+-"
	for line := range strings.Lines(out) {
		v, ours := strings.CutPrefix(strings.TrimSuffix(line, "\n"), name+" v")
		if ours && v != "" && len(v) <= 41 && v[0] >= '0' && v[0] <= '9' && strings.Trim(v, form) == "" {
			return v, nil
		}
	}
	return "", fmt.Errorf("no version of %s in %.100q", name, out)
}
