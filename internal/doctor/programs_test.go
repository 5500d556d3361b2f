package doctor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestFirecrackerAndItsAdvisories(t *testing.T) {
	for name, c := range map[string]struct {
		firecracker, jailer, recorded string // what they print
		says, known                   string
	}{
		"good":       {"Firecracker v1.15.1", "Jailer v1.15.1", "Firecracker v1.15.1", "pass 1.15.1, as installed", "pass none is known"},
		"two":        {"Firecracker v1.15.1", "Jailer v1.12.1", "Firecracker v1.15.1", "fail firecracker is 1.15.1, jailer is 1.12.1", "pass"},
		"old":        {"Firecracker v1.12.1", "Jailer v1.12.1", "Firecracker v1.12.1", "pass", "warn Firecracker 1.12.1 has CVE-2026-1386"},
		"changed":    {"Firecracker v1.15.1", "Jailer v1.15.1", "Firecracker v1.15.0", "fail /fc is not what was installed", "warn the version"},
		"no version": {"Firefox", "Jailer v1.15.1", "Firefox", `fail no version of Firecracker in "Firefox`, "warn the version"},
	} {
		h := tree(t, nil)
		script := func(says string) string { return "#!/bin/sh\necho '" + says + "'\n" }
		sum := func(says string) string {
			s := sha256.Sum256([]byte(script(says)))
			return hex.EncodeToString(s[:])
		}
		for path, says := range map[string]string{"/fc": c.firecracker, "/jailer": c.jailer} {
			if err := os.WriteFile(h.at(path), []byte(script(says)), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		h.Record.Firecracker, h.Record.FirecrackerSHA256 = "/fc", sum(c.recorded)
		h.Record.Jailer, h.Record.JailerSHA256 = "/jailer", sum(c.jailer)
		all := h.firecrackerQuestion().Ask(t.Context())
		for i, want := range []string{c.says, c.known} {
			if got := string(all[i].Status) + " " + all[i].Found; !strings.HasPrefix(got, want) {
				t.Errorf("%s: %s says %q, want %q", name, all[i].ID, got, want)
			}
		}
	}
	check(t, "missing", judgeReleases(releases{}, errors.Join(errors.New("a"), errors.New("b"))), "fail", "a; b")
}

func TestParseVersion(t *testing.T) {
	out := "Firecracker v1.12.1\n\n2026-11-24T13:33:45 [anonymous-instance:main] Firecracker exiting successfully. exit_code=0\n"
	if v, err := parseVersion(out, "Firecracker"); err != nil || v != "1.12.1" {
		t.Errorf("%q, %v", v, err)
	}
	for _, bad := range []string{"", "Jailer v1.12.1\n", "Firecracker v\n", "Firecracker v1.2 \x1b[31m\n"} {
		if v, err := parseVersion(bad, "Firecracker"); err == nil {
			t.Errorf("%q gave %q", bad, v)
		}
	}
}
