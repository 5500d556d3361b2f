package install

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"banger/internal/paths"
)

const vmDropIns = paths.AdminUnits + "/banger-vm-.service.d"

func TestUninstallKeepsState(t *testing.T) {
	f := newHost(t)
	f.mustInstall()
	f.put(paths.StateDir+"/banger.db", "vms")
	f.put("/run/banger/bangerd.sock", "")
	f.put(vmDropIns+"/50-mine.conf", "[Service]\n")
	f.active["banger-vm-0123456789ab.service"] = true
	f.active["banger-helper.service"] = true
	out := f.mustUninstall(false)

	for unit, active := range f.active {
		if active {
			t.Errorf("%s still runs", unit)
		}
	}
	var stops []string
	for _, c := range f.ran {
		if strings.HasPrefix(c, "systemctl stop") {
			stops = append(stops, strings.TrimPrefix(c, "systemctl stop "))
		}
	}
	if want := []string{"banger-guests.service", "banger-dns.socket bangerd.service bangerd.socket", "banger-vm-0123456789ab.service", "banger-helper.service banger-helper.socket"}; !slices.Equal(stops, want) {
		t.Errorf("stopped %q, want %q", stops, want)
	}
	for _, path := range []string{paths.BinDir + "/banger", paths.LibexecDir, f.unitPath("bangerd.service"), paths.InstallFile, modulesFile, "/run/banger"} {
		if f.exists(path) {
			t.Errorf("%s is still there", path)
		}
	}
	for _, path := range []string{paths.StateDir + "/banger.db", paths.ConfigFile, vmDropIns + "/50-mine.conf", manifestFile} {
		if !f.exists(path) {
			t.Errorf("%s is gone", path)
		}
	}
	if strings.Contains(f.read("/etc/subuid")+f.read("/etc/subgid"), "banger") {
		t.Error("the uid range is still reserved")
	}
	for _, want := range []string{"left /var/lib/banger\n", "left /etc/banger/config.toml\n", "removed banger:200000:65536 from /etc/subuid", "left " + vmDropIns + ": it holds files"} {
		if !strings.Contains(out, want) {
			t.Errorf("output does not say %q:\n%s", want, out)
		}
	}

	f.put(paths.ConfigFile, "log_level = \"warn\"\n")
	f.mustInstall()
	if f.read(paths.StateDir+"/banger.db") != "vms" || f.read(paths.ConfigFile) != "log_level = \"warn\"\n" {
		t.Error("installing again lost something")
	}
}

func TestPurgeLeavesNothing(t *testing.T) {
	f := newHost(t)
	f.put("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	f.put("/etc/subgid", "dev:100000:65536\n")
	before := f.tree()
	f.mustInstall()
	f.put(paths.StateDir+"/vms/x/overlay.cow", "data")
	f.put("/var/log/journal/0123456789abcdef0123456789abcdef.banger/system.journal", "log")
	f.mustUninstall(true)
	// What the fake modprobe and the test itself made does not count.
	f.remove("/var/log")
	after := f.tree()
	for _, m := range []map[string]string{before, after} {
		for path, text := range m {
			if strings.HasPrefix(path, "/sys/module") || path == accountLock || strings.HasPrefix(text, "d") {
				delete(m, path)
			}
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok {
			t.Errorf("left %s", path)
		}
	}
	for _, path := range []string{"/etc/banger", vmDropIns, paths.LibexecDir, paths.StateDir, paths.HelperDir, cacheDir, "/var/log"} {
		if f.exists(path) {
			t.Errorf("left %s", path)
		}
	}
	for _, path := range []string{"/etc/subuid", "/etc/subgid"} {
		if got := f.read(path); got != "dev:100000:65536\n" {
			t.Errorf("%s = %q", path, got)
		}
	}
	if out := f.mustUninstall(true); out != "banger is not installed\n" {
		t.Errorf("the second time it says %q", out)
	}
}

func TestPurgeAfterUninstall(t *testing.T) {
	f := newHost(t)
	f.mustInstall()
	f.mustUninstall(false)
	f.mustUninstall(true)
	for _, path := range []string{"/etc/banger", paths.StateDir, paths.HelperDir, cacheDir} {
		if f.exists(path) {
			t.Errorf("left %s", path)
		}
	}
}

func TestUninstallKeepsChangedFiles(t *testing.T) {
	f := newHost(t)
	f.mustInstall()
	f.put(f.unitPath("bangerd.service"), "mine")
	out := f.mustUninstall(true)
	if f.read(f.unitPath("bangerd.service")) != "mine" || !strings.Contains(out, "left "+f.unitPath("bangerd.service")+": it was changed") {
		t.Errorf("a changed file is gone, or not named:\n%s", out)
	}
}

func TestUninstallTouchesNothingForeign(t *testing.T) {
	f := newHost(t)
	f.put(paths.LibexecDir+"/bangerd", "other")
	f.put(paths.StateDir+"/x", "other")
	f.put(f.unitPath("bangerd.service"), "other")
	f.put("/etc/subuid", "banger:300000:65536\n")
	before := f.tree()
	if out := f.mustUninstall(true); out != "banger is not installed\n" || len(f.ran) > 0 {
		t.Errorf("said %q, ran %q", out, f.ran)
	}
	if !reflect.DeepEqual(before, f.tree()) {
		t.Error("something was changed")
	}
}

func TestUninstallStopsAtAVMThatStays(t *testing.T) {
	f := newHost(t)
	f.mustInstall()
	f.active["banger-vm-0123456789ab.service"] = true
	f.fail = func(argv []string) error {
		if argv[1] == "stop" && strings.HasPrefix(argv[2], "banger-vm-") {
			return &commandError{argv: argv, code: 1}
		}
		return nil
	}
	if err := f.uninstall(t.Context(), true); err == nil {
		t.Fatal("no error")
	}
	if !f.exists(paths.LibexecDir+"/banger-helper") || !f.exists(paths.StateDir) {
		t.Error("the helper that the VM needs is gone")
	}
}
