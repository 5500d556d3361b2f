//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/paths"
)

// A host whose administrator hardened the filesystem of the jails, or split it,
// starts no VM: the start says what is wrong and what to do, doctor says the same,
// and when it is undone the VM starts. A jail without device nodes would
// else be a disk that cannot be opened, and so one that looks damaged.
func TestMountsThatTakeNoJail(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	must(t, "vm", "stop", vm.Name)
	for _, c := range []struct {
		name, says string
		do         func(t *testing.T) (undo func())
	}{
		{"nodev", "mounted nodev", hardened("nodev")},
		{"noexec", "mounted noexec", hardened("noexec")},
		{"read only", "mounted ro", hardened("ro")},
		{"nodev under a running helper", "mounted nodev", remounted("nodev")},
		{"noexec under a running helper", "mounted noexec", remounted("noexec")},
		{"read only under a running helper", "mounted ro", remounted("ro")},
		{"jails on a filesystem of their own", "on different mounts", apart(filepath.Dir(paths.JailDir))},
		{"blobs on a filesystem of their own", "on different mounts", apart(filepath.Dir(paths.BlobDir))},
	} {
		t.Run(c.name, func(t *testing.T) {
			undo := c.do(t)
			defer func() {
				if undo != nil {
					undo()
				}
			}()
			if got := doctor(t)["jail"]; got.Status != api.CheckFail || !strings.Contains(got.Found, c.says) || !strings.Contains(got.Fix, paths.HelperDir) {
				t.Errorf("doctor: %+v", got)
			}
			// The second start finds a VM whose last one failed: its disks are to be
			// checked, in a jail of that filesystem too.
			for _, disks := range []string{"in order", "to be checked"} {
				if disks == "to be checked" {
					dirty(t, vm)
				}
				r := banger(t, "vm", "start", vm.Name)
				t.Logf("disks %s: exit %d: %s", disks, r.Code, strings.TrimSpace(r.Stderr))
				if r.Code == 0 || !strings.Contains(r.Stderr, c.says) || !strings.Contains(r.Stderr, "hint: keep "+paths.HelperDir) {
					t.Errorf("disks %s: exit %d, it does not say %q", disks, r.Code, c.says)
				}
				if strings.Contains(r.Stderr, "damaged") || strings.Contains(r.Stderr, "--repair") {
					t.Errorf("disks %s: the disks are blamed", disks)
				}
				if v := show(t, vm.Name); v.State != api.StateFailed {
					t.Errorf("it is %s", v.State)
				}
			}
			undo()
			undo = nil
			if got := doctor(t)["jail"]; got.Status != api.CheckPass {
				t.Errorf("afterwards: %+v", got)
			}
		})
	}
	must(t, "vm", "start", vm.Name)
	must(t, "vm", "exec", vm.Name, "--", "true")
}

// dirty lets the VM look as if its last run had not ended in order: somebody has
// touched its disk since.
func dirty(t *testing.T, vm api.VM) {
	t.Helper()
	overlay := filepath.Join(paths.StateDir, "vms", vm.ID, "overlay.cow")
	st, err := os.Stat(overlay)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(overlay, st.ModTime(), st.ModTime().Add(1)); err != nil {
		t.Fatal(err)
	}
}

// helperAnew starts the helper again, which so sees the host's mounts as they are.
func helperAnew(t *testing.T) { t.Helper(); root(t, "systemctl", "restart", "banger-helper.service") }

// hardened mounts the helper's directory upon itself with an option, as one line
// of an fstab does, and starts the helper below it.
func hardened(option string) func(*testing.T) func() {
	return func(t *testing.T) func() {
		t.Helper()
		root(t, "mount", "--bind", paths.HelperDir, paths.HelperDir)
		root(t, "mount", "-o", "remount,bind,"+option, paths.HelperDir)
		helperAnew(t)
		return func() { root(t, "umount", paths.HelperDir); helperAnew(t) }
	}
}

// remounted changes the helper's own view, while it runs.
func remounted(option string) func(*testing.T) func() {
	return func(t *testing.T) func() {
		t.Helper()
		banger(t, "doctor") // it is there
		pid := mainPID(t, "banger-helper.service")
		root(t, "nsenter", "--mount", "--target", strconv.Itoa(pid), "--", "mount", "--no-mtab", "-o", "remount,bind,"+option, paths.HelperDir)
		return func() { helperAnew(t) }
	}
}

// apart mounts a filesystem over one of the two directories.
func apart(dir string) func(*testing.T) func() {
	return func(t *testing.T) func() {
		t.Helper()
		root(t, "mount", "-t", "tmpfs", "-o", "mode=0700", "banger-apart", dir)
		helperAnew(t) // which makes the directories below it
		return func() { root(t, "umount", dir); helperAnew(t) }
	}
}
