package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/installed"
)

// getent answers by its arguments; what is not there has exit code 2.
type getent map[string]string

func (g getent) run(_ context.Context, argv ...string) (string, error) {
	all := strings.Join(argv[1:], " ")
	if out, ok := g[all]; ok {
		return out, nil
	}
	if err, ok := g["! "+all]; ok {
		return "ann:x:200001", fmt.Errorf("wrapped: %w", errors.New(err)) // of ann:x:200001234:
	}
	var out string
	for _, key := range argv[2:] {
		out += g[argv[1]+" "+key]
	}
	return out, fmt.Errorf("wrapped: %w", exitCode(2))
}

func TestUIDRange(t *testing.T) {
	const line = "dev:100000:65536\nbanger:200000:65536\n"
	h := tree(t, map[string]string{"/etc/subuid": line, "/etc/subgid": line, "/etc/passwd": "dev:x:1000:1000:::\n"})
	h.Record = installed.Record{UIDBase: 200000, UIDCount: 65536}
	check(t, "without getent", h.uidRange(t.Context()), "pass", "there is no getent")
	const ids = " 200000 200500 200513 232768 265535"
	for name, c := range map[string]struct {
		known  getent
		status api.CheckStatus
		says   string
	}{
		"nobody":                 {getent{}, "pass", "200000 to 265535 are reserved, and nobody else's"},
		"the same files":         {getent{"passwd": "dev:x:1000:1000:::\n"}, "pass", "nobody else's"},
		"listed":                 {getent{"passwd": "ann@corp:*:200012:5:::\n"}, "fail", "user ann@corp"},
		"a group is listed":      {getent{"group": "staff:*:265000:\n"}, "fail", "group staff"},
		"the first":              {getent{"passwd 200000": "first:*:200000:5:::\n"}, "fail", "user first"},
		"the last":               {getent{"passwd 265535": "last:*:265535:5:::\n"}, "fail", "user last"},
		"a domain's":             {getent{"group 200513": "domain users:*:200513:\n"}, "fail", "group domain users"},
		"of our name":            {getent{"passwd banger": "banger:*:70000:5:::\n"}, "fail", `user named "banger"`},
		"a list that is cut":     {getent{"! passwd": "it prints too much"}, "pass", "as far as accounts can be listed"},
		"a directory that hangs": {getent{"! passwd banger" + ids: "it does not answer"}, "warn", "it does not answer"},
		"groups that hang":       {getent{"! group" + ids: "it does not answer"}, "warn", "cannot be looked at"},
	} {
		h.Run = c.known.run
		check(t, name, h.uidRange(t.Context()), c.status, c.says)
	}
	h.Run = nil
	put(t, h, "/etc/passwd", "eve:x:200005:100:::\n")
	check(t, "a user in it", h.uidRange(t.Context()), "fail", "user eve")
	put(t, h, "/etc/passwd", "")
	put(t, h, "/etc/subgid", line+"eve:265000:65536\n")
	check(t, "a range in it", h.uidRange(t.Context()), "fail", "eve")
}

func TestRunCommand(t *testing.T) {
	out, err := runCommand(t.Context(), "sh", "-c", "echo partial; exit 3")
	if !errors.Is(err, exitCode(3)) || out != "partial\n" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := runCommand(t.Context(), "sh", "-c", "echo $0 $#", "a b", "c"); err != nil || out != "a b 1\n" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := runCommand(t.Context(), "there-is-no-such-program"); !errors.Is(err, errNoProgram) {
		t.Errorf("%v", err)
	}
	out, err = runCommand(t.Context(), "head", "-c", fmt.Sprint(commandOutput+1<<20), "/dev/zero")
	if !errors.Is(err, errTooMuch) || len(out) > commandOutput || len(out) == 0 {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := runCommand(ctx, "sleep", "60"); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("%v", err)
	}
}

func TestTelling(t *testing.T) {
	h := Host{Record: installed.Record{UIDBase: 327680, UIDCount: 65536}}
	if got := h.telling(); !slices.Contains(got, "327680") || !slices.Contains(got, "393215") || slices.Contains(got, "393216") {
		t.Errorf("%v", got)
	}
}
