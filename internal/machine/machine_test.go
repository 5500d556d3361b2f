package machine

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/api"
)

func TestNames(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", "/data")
	for name, ok := range map[string]bool{
		"": true, "lab": true, "a": true, "a-1": true, strings.Repeat("x", 32): true,
		"Lab": false, "-a": false, "a-": false, "a/b": false, "..": false, ".a": false, "a b": false, "é": false,
		strings.Repeat("x", 33): false,
	} {
		m, err := New(name)
		if (err == nil) != ok {
			t.Errorf("New(%q): %v, want ok = %v", name, err, ok)
		}
		if err == nil && filepath.Dir(m.Dir) != "/data/banger/machine" {
			t.Errorf("New(%q) is in %s", name, m.Dir)
		}
	}
}

func TestDataHomeMustBeAbsolute(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", "data")
	t.Setenv("HOME", "/home/x")
	m, err := New("")
	if err != nil || m.Dir != "/home/x/.local/share/banger/machine/default" {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestArgvArrivesWordForWord(t *testing.T) {
	argv := []string{"printf", `%s\n`, "", "two words", `it's`, `"$HOME"`, "a\nb", `\`, "*", "-x", "ü"}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", quoteArgv(argv)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(argv[2:], "\n") + "\n"; string(out) != want {
		t.Errorf("the shell saw %q, want %q", out, want)
	}
}

func TestSSHCommand(t *testing.T) {
	m := &Machine{Name: "x", Dir: "/m"}
	got := m.SSHCommand(t.Context(), Owner, false, "ls", "a b").Args
	want := []string{"ssh", "-F", "/m/ssh_config", "-l", Owner, "-T", hostAlias, "--", "'ls' 'a b'"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	shell := m.SSHCommand(t.Context(), Root, true).Args
	if want := []string{"ssh", "-F", "/m/ssh_config", "-l", Root, "-t", hostAlias}; !slices.Equal(shell, want) {
		t.Errorf("got %q, want %q", shell, want)
	}
}

// here returns a machine in a directory of the test's own.
func here(t *testing.T) *Machine {
	t.Helper()
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	m, err := New("test")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != code || p.Hint == "" {
		t.Errorf("got %v, want a problem %q with a hint", err, code)
	}
}

func TestOneCommandChangesAMachine(t *testing.T) {
	m := here(t)
	unlock, err := m.lock()
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, m.Start(t.Context(), nil), api.CodeConflict)
	wantCode(t, m.Remove(t.Context()), api.CodeConflict)
	unlock()
	if err := m.Remove(t.Context()); err != nil {
		t.Errorf("cannot remove what is not there: %v", err)
	}
}

func TestAbsentMachine(t *testing.T) {
	m := here(t)
	s, err := m.Status()
	if err != nil || s.State != Absent {
		t.Errorf("status is %+v, %v", s, err)
	}
	wantCode(t, m.Start(t.Context(), nil), api.CodeNotFound)
	wantCode(t, m.Stop(t.Context(), nil), api.CodeNotFound)
}

func TestRemoveTakesAll(t *testing.T) {
	m := here(t)
	if err := os.MkdirAll(filepath.Join(m.Dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(m.path(recordFile), record{CPUs: 1}); err != nil {
		t.Fatal(err)
	}
	if s, err := m.Status(); err != nil || s.State != Stopped || s.CPUs != 1 {
		t.Fatalf("status is %+v, %v", s, err)
	}
	if err := m.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Dir(m.Dir))
	if err != nil || len(left) != 1 || left[0].Name() != ".test.lock" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestLastLines(t *testing.T) {
	got := lastLines([]byte("\x1b[31mred\x1b[0m\r\n" + strings.Repeat("line\n", 100) + "end\n"))
	if strings.ContainsAny(got, "\x1b\r") || !strings.HasSuffix(got, "\n    end") || strings.Count(got, "\n") != 14 {
		t.Errorf("got %q", got)
	}
}
