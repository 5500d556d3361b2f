package install

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"banger/internal/paths"
)

func (f *fakeHost) status() Status {
	f.t.Helper()
	s, err := f.examine(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func TestStatus(t *testing.T) {
	f := newHost(t)
	if s := f.status(); s.Installed || s.Healthy() || len(s.Left) > 0 {
		t.Errorf("of a host without banger: %+v", s)
	}
	f.mustInstall()
	f.active["banger-vm-0123456789ab.service"] = true
	s := f.status()
	if !s.Healthy() || s.Version != "dev" || s.Owner != "dev" || s.UIDBase != 200000 || s.Packaged || s.VMs != 1 || len(s.Changed) > 0 || s.Programs != paths.Local.Libexec {
		t.Errorf("%+v", s)
	}
	i := slices.IndexFunc(s.Services, func(u UnitStatus) bool { return u.Unit == "bangerd.service" })
	if want := (UnitStatus{"bangerd.service", "active", "enabled", "dev", true}); i < 0 || s.Services[i] != want {
		t.Errorf("services are %+v", s.Services)
	}
	f.active["bangerd.service"] = false
	if f.status().Healthy() {
		t.Error("it does not mind that bangerd is down")
	}
	f.mustUninstall(false)
	if s := f.status(); s.Installed || !slices.Contains(s.Left, paths.StateDir) || !slices.Contains(s.Left, paths.ConfigFile) {
		t.Errorf("after an uninstall: %+v", s)
	}
}

func TestStatusTellsWhatIsChangedByHand(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(f *fakeHost)
		want   Change
	}{
		"program": {func(f *fakeHost) { f.put(paths.Local.Libexec+"/bangerd", "mine") }, Change{paths.Local.Libexec + "/bangerd", ChangeContent}},
		"unit":    {func(f *fakeHost) { f.put(f.unitPath("bangerd.socket"), "mine") }, Change{paths.AdminUnits + "/bangerd.socket", ChangeContent}},
		"gone":    {func(f *fakeHost) { f.remove(ownerPath("bangerd.service")) }, Change{ownerPath("bangerd.service"), ChangeGone}},
		"writable": {func(f *fakeHost) {
			if err := os.Chmod(f.at(paths.Local.Libexec+"/jailer"), 0o777); err != nil {
				f.t.Fatal(err)
			}
		}, Change{paths.Local.Libexec + "/jailer", ChangeRights}},
		"symlink": {func(f *fakeHost) {
			f.remove(udevFile)
			if err := os.Symlink("/dev/null", f.at(udevFile)); err != nil {
				f.t.Fatal(err)
			}
		}, Change{udevFile, ChangeContent}},
		"directory":     {func(f *fakeHost) { f.remove(cacheDir) }, Change{cacheDir, ChangeGone}},
		"drop-in":       {func(f *fakeHost) { f.put(vmDropIns+"/50-mine.conf", "") }, Change{vmDropIns + "/50-mine.conf", ChangeAdded}},
		"for one VM":    {func(f *fakeHost) { f.put(paths.AdminUnits+"/banger-vm-0a.service.d/x.conf", "") }, Change{paths.AdminUnits + "/banger-vm-0a.service.d/x.conf", ChangeAdded}},
		"range":         {func(f *fakeHost) { f.put("/etc/subgid", "dev:100000:65536\n") }, Change{"/etc/subgid: banger:200000:65536", ChangeGone}},
		"of the runner": {func(f *fakeHost) { f.put("/run/systemd/system/bangerd.service.d/x.conf", "") }, Change{"/run/systemd/system/bangerd.service.d/x.conf", ChangeAdded}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newHost(t)
			f.mustInstall()
			f.put(paths.ConfigFile, "log_level = \"debug\"\n") // meant to be changed
			f.put(paths.AdminUnits+"/banger-machine-seed.service", "")
			tt.change(f)
			if got := f.status().Changed; !slices.Equal(got, []Change{tt.want}) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestStatusTellsOfACutOffRun(t *testing.T) {
	f := newHost(t)
	f.fail = func(argv []string) error {
		if slices.Equal(argv, []string{"systemctl", "daemon-reload"}) {
			return &commandError{argv: argv, code: 1}
		}
		return nil
	}
	if _, err := f.doInstall(); err == nil {
		t.Fatal("no error")
	}
	if s := f.status(); !s.Unfinished || s.Healthy() {
		t.Errorf("%+v", s)
	}
}

func TestRestart(t *testing.T) {
	f := newHost(t)
	if err := f.restart(t.Context()); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("without banger: %v", err)
	}
	f.mustInstall()
	for name, tt := range map[string]struct {
		active map[string]bool
		ran    []string
	}{
		"both":   {map[string]bool{"banger-helper.service": true}, []string{"systemctl restart banger-helper.service", "systemctl restart bangerd.service"}},
		"idle":   {map[string]bool{"banger-helper.service": false}, []string{"systemctl restart bangerd.service"}},
		"down":   {map[string]bool{"banger-helper.service": false, "bangerd.service": false}, []string{"systemctl start bangerd.service"}},
		"socket": {map[string]bool{"banger-helper.socket": false}, []string{"systemctl start banger-helper.socket", "systemctl restart bangerd.service"}},
	} {
		t.Run(name, func(t *testing.T) {
			f.active["bangerd.service"], f.active["banger-vm-0123456789ab.service"] = true, true
			maps.Copy(f.active, tt.active)
			f.ran = nil
			if err := f.restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(f.ran, tt.ran) {
				t.Errorf("ran %q, want %q", f.ran, tt.ran)
			}
		})
	}
}
