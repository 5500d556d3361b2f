package install

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/paths"
)

// At every line that an install or an uninstall prints it can be killed, told to
// end, or have systemd fail. Whatever is left, an install completes it, and so
// does an uninstall.

// cut is what happens at the n-th line or command.
type cut struct {
	lines, commands int // how many may come before it; -1 for all
	do              func()
}

func (c *cut) Write(p []byte) (int, error) {
	if c.lines == 0 {
		c.do()
	}
	c.lines--
	return len(p), nil
}

// command returns what the command of a host answers, until it is cut off.
func (c *cut) command([]string) error {
	c.commands--
	if c.commands == -1 {
		return errors.New("cut off")
	}
	return nil
}

var errKilled = errors.New("killed")

// attempt calls f with a host that is cut off in that way, and returns its error.
func (f *fakeHost) attempt(c *cut, do func(context.Context) error) (err error) {
	ctx, cancel := context.WithCancel(f.t.Context())
	defer cancel()
	if c.do == nil {
		c.do = cancel
	}
	old := f.host.out
	f.host.out, f.fail = c, c.command
	defer func() {
		f.host.out, f.fail = old, nil
		if r := recover(); r != nil { // what a deferred function does here, a kill would not do
			err = errKilled
		}
	}()
	return do(ctx)
}

// settled is what lies on the disk, without its times and what the fake systemd
// and the test itself leave.
func (f *fakeHost) settled() map[string]string {
	f.t.Helper()
	all := f.tree()
	maps.DeleteFunc(all, func(path, _ string) bool {
		return path == "" || path == accountLock || strings.HasPrefix(path, "/sys/module") || strings.HasPrefix(path, "/run")
	})
	for path := range all {
		info, err := os.Lstat(f.at(path))
		if err != nil {
			f.t.Fatal(err)
		}
		all[path] = fmt.Sprint(info.Mode(), f.uidOf(info))
		if info.Mode().IsRegular() {
			all[path] += " " + f.read(path)
		}
	}
	return all
}

func wantSameFiles(t *testing.T, want, got map[string]string) {
	t.Helper()
	for path, text := range want {
		if got[path] != text {
			t.Errorf("%s is %q, want %q", path, got[path], text)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("left %s", path)
		}
	}
}

func TestCutOffAnywhere(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err == nil {
		t.Setenv("TMPDIR", "/dev/shm") // many files that are synced
	}
	hosts := map[string]func(*testing.T) *fakeHost{"local": newHost, "package": newPackagedHost}
	ways := map[string]func(n int) *cut{
		"killed":   func(n int) *cut { return &cut{lines: n, commands: -1, do: func() { panic(errKilled) }} },
		"told":     func(n int) *cut { return &cut{lines: n, commands: -1} },
		"a failed": func(n int) *cut { return &cut{lines: -1, commands: n} },
	}
	for kind, newHost := range hosts {
		for way, after := range ways {
			for _, verb := range []string{"install", "uninstall"} {
				t.Run(kind+"/"+way+" "+verb, func(t *testing.T) { cutOffAnywhere(t, newHost, after, verb) })
			}
		}
	}
}

func cutOffAnywhere(t *testing.T, newHost func(*testing.T) *fakeHost, after func(n int) *cut, verb string) {
	fresh := newHost(t)
	fresh.put("/etc/subgid", "dev:100000:65536\n")
	nothing := fresh.settled()
	fresh.mustInstall()
	whole := fresh.settled()

	for n := 0; ; n++ {
		cuts := 0
		for _, next := range []string{"install", "uninstall"} {
			f := newHost(t)
			f.put("/etc/subgid", "dev:100000:65536\n")
			f.from = fromOf(fresh, f)
			if verb == "uninstall" {
				f.mustInstall()
			}
			err := f.attempt(after(n), func(ctx context.Context) error {
				if verb == "uninstall" {
					return f.uninstall(ctx, true)
				}
				return f.install(ctx, Options{Owner: "dev", From: f.from, Out: &f.out})
			})
			if err != nil {
				cuts++
			}
			at := fmt.Sprintf("after %s ended at %d (%v), %s", verb, n, err, next)
			if next == "install" {
				if out, err := f.doInstall(); err != nil {
					t.Fatalf("%s: %v\n%s", at, err, out)
				}
				wantSameFiles(t, whole, f.settled())
				if s := f.status(); !s.Healthy() {
					t.Errorf("%s: %+v", at, s)
				}
				f.mustUninstall(true)
			} else {
				f.mustUninstall(true)
			}
			left := f.settled()
			if verb == "install" && n == 0 {
				delete(left, etcDir) // empty: there was no list of files yet. The next install takes it
			}
			wantSameFiles(t, nothing, left)
			for unit, active := range f.active {
				if active || f.enabled[unit] {
					t.Errorf("%s: %s still runs", at, unit)
				}
			}
			if t.Failed() {
				t.Fatal(at)
			}
		}
		if cuts == 0 {
			if n < 5 {
				t.Errorf("only %d places were tried", n)
			}
			return
		}
	}
}

// fromOf is where both hosts take their programs from.
func fromOf(one, other *fakeHost) string {
	if one.layout.Packaged {
		return ""
	}
	return other.from
}

func TestOneInstallAtATime(t *testing.T) {
	f := newHost(t)
	dir, err := os.Open(f.at(paths.AdminUnits))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	before := f.settled()
	_, err1 := f.doInstall()
	for verb, err := range map[string]error{"install": err1, "uninstall": f.uninstall(t.Context(), true), "restart": f.restart(t.Context())} {
		if err == nil || !strings.Contains(err.Error(), "another install or uninstall is running") {
			t.Errorf("%s: %v", verb, err)
		}
	}
	wantSameFiles(t, before, f.settled())
}

// Where systemd does not run, as in the directory of a host that was mounted to
// be mended, nothing of ours does.
func TestUninstallWithoutSystemd(t *testing.T) {
	f := newPackagedHost(t)
	f.put("/etc/subgid", "dev:100000:65536\n")
	before := f.settled()
	f.mustInstall()
	f.remove("/run/systemd")
	f.mustUninstall(true)
	for _, c := range f.ran {
		if !strings.HasPrefix(c, "systemctl disable ") {
			t.Errorf("ran %q", c)
		}
	}
	if f.enabled["bangerd.service"] {
		t.Error("bangerd would start at the next boot")
	}
	wantSameFiles(t, before, f.settled())
}
