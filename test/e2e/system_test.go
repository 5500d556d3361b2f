//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/install"
	"banger/internal/paths"
	"banger/test/host"
)

// system runs `banger system ...` of the programs in dir as root.
func system(t *testing.T, dir string, args ...string) (out string, ok bool) {
	t.Helper()
	c := exec.CommandContext(context.WithoutCancel(t.Context()), filepath.Join(dir, "banger"), append([]string{"system"}, args...)...)
	text, err := c.CombinedOutput()
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		t.Fatal(err)
	}
	return string(text), err == nil
}

func mustSystem(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, ok := system(t, dir, args...)
	if !ok {
		t.Fatalf("banger system %v: %s", args, out)
	}
	return out
}

// asOwner asks for the state of the installation, without rights.
func asOwner(t *testing.T) (s install.Status, code int) {
	t.Helper()
	r := banger(t, "system", "status", "--json")
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	return s, r.Code
}

// programsOf copies the installed programs, to install them again.
func programsOf(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, pattern := range []string{paths.Local.Bin + "/banger", paths.Local.Libexec + "/*"} {
		for _, path := range glob(t, pattern) {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), raw, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestInstallationChangesUnderARunningVM(t *testing.T) {
	leavesNothing(t)
	dir := programsOf(t)
	vm := running(t)
	same := func(after string) {
		t.Helper()
		if now := show(t, vm.Name); now.State != "running" || now.Guest == nil || now.Guest.BootID != vm.Guest.BootID {
			t.Errorf("after %s: %+v, had boot id %s", after, now, vm.Guest.BootID)
		}
		must(t, "vm", "exec", vm.Name, "--", "true")
	}
	before, code := asOwner(t)
	owner := host.Owner(t)
	if code != 0 || !before.Installed || before.Owner != owner.Owner || before.UIDBase != owner.UIDBase || before.VMs != 1 ||
		len(before.Changed) > 0 || before.Unfinished || before.Socket.UID != owner.UID || before.Socket.Mode != "0600" {
		t.Errorf("exit %d: %+v", code, before)
	}

	if out := mustSystem(t, dir, "restart"); !strings.Contains(out, "restarted bangerd.service") {
		t.Errorf("restart says %q", out)
	}
	same("a restart")

	// What is behind the end of a program does not change what it does.
	program := filepath.Join(dir, "banger-helper")
	old, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range [][]byte{append(slices.Clone(old), "new"...), old} {
		if err := os.WriteFile(program, content, 0o755); err != nil {
			t.Fatal(err)
		}
		out := mustSystem(t, dir, "upgrade")
		if !strings.Contains(out, "wrote "+paths.Local.Libexec+"/banger-helper\n") || strings.Count(out, "wrote") != 1 ||
			strings.Contains(out, "bangerd.service") {
			t.Errorf("an upgrade of the helper alone says %q", out)
		}
		same("an upgrade")
	}
	if after, _ := asOwner(t); after.Version != before.Version || len(after.Changed) > 0 {
		t.Errorf("was %+v, is %+v", before, after)
	}
}

func TestForeignFilesAreNamedAndLeft(t *testing.T) {
	dir := programsOf(t)
	unit := paths.AdminUnits + "/bangerd.socket"
	old, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	mine := append([]byte("# mine\n"), old...)
	if err := os.WriteFile(unit, mine, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(unit, old, 0o644); err != nil {
			t.Error(err)
		}
		root(t, "systemctl", "daemon-reload")
	})
	rival := paths.Distribution.Bin + "/banger"
	if err := os.WriteFile(rival, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(rival) })
	out, ok := system(t, dir, "upgrade")
	if ok || !strings.Contains(out, unit) || !strings.Contains(out, rival) || strings.Contains(out, "wrote") {
		t.Errorf("upgrade says %q", out)
	}
	if now, err := os.ReadFile(unit); err != nil || !bytes.Equal(now, mine) {
		t.Errorf("%s was written: %v", unit, err)
	}
	if s, code := asOwner(t); code != 0 || !slices.Contains(s.Changed, install.Change{Path: unit, What: install.ChangeContent}) {
		t.Errorf("exit %d, changed: %+v", code, s.Changed)
	}
}

func TestUninstallLeavesWhatItSays(t *testing.T) {
	leavesNothing(t)
	dir := programsOf(t)
	owner := host.Owner(t)
	vm := running(t)
	must(t, "vm", "exec", vm.Name, "--", "sh", "-c", "echo kept >/var/kept; sync")
	t.Cleanup(func() { mustSystem(t, dir, "install", "--owner", owner.Owner) })

	out := mustSystem(t, dir, "uninstall", "--force")
	if now := inventory(t); len(now) > 0 {
		t.Errorf("left %q", now)
	}
	for _, pattern := range []string{paths.Local.Bin + "/banger", paths.Local.Libexec, paths.InstallFile, paths.SysctlFile,
		paths.AdminUnits + "/bangerd*", paths.AdminUnits + "/banger.*", paths.AdminUnits + "/banger-[^m]*", // banger-machine is the lab's
		paths.AdminUnits + "/*.wants/bangerd*", paths.AdminUnits + "/*.wants/banger-[^m]*",
		"/run/banger", "/run/banger-helper", "/etc/modules-load.d/banger.conf", "/etc/udev/rules.d/*banger*", "/etc/systemd/journald@banger*"} {
		if left := glob(t, pattern); len(left) > 0 {
			t.Errorf("left %q", left)
		}
	}
	for _, table := range []string{"/etc/subuid", "/etc/subgid"} {
		if strings.Contains(read(t, table), "banger:") {
			t.Errorf("%s still has a range for banger", table)
		}
	}
	for _, path := range append(glob(t, "/etc/banger/*"), paths.StateDir, paths.HelperDir) {
		if path != "/etc/banger/files.json" && !strings.Contains(out, "left "+path+"\n") {
			t.Errorf("left %s and did not say so:\n%s", path, out)
		}
	}
	if out, ok := system(t, dir, "status"); ok || !strings.Contains(out, "installed  no") || !strings.Contains(out, paths.StateDir) {
		t.Errorf("status says %q", out)
	}
	if out, ok := system(t, dir, "upgrade"); ok || !strings.Contains(out, "not installed") {
		t.Errorf("upgrade says %q", out)
	}

	mustSystem(t, dir, "install", "--owner", owner.Owner)
	must(t, "vm", "start", vm.Name)
	if got := must(t, "vm", "exec", vm.Name, "--", "cat", "/var/kept"); got != "kept\n" {
		t.Errorf("got %q", got)
	}
}
