package install

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"banger/internal/installed"
	"banger/internal/paths"
)

func TestInstallFresh(t *testing.T) {
	f := newHost(t)
	out := f.mustInstall()

	r, err := installed.Parse(f.read(paths.InstallFile))
	if err != nil {
		t.Fatal(err)
	}
	if r.Owner != "dev" || r.UID != f.own.uid || r.UIDBase != 200000 || r.UIDCount != 65536 || r.InstalledAt == "" {
		t.Errorf("record = %+v", r)
	}
	if sum, err := HashFile(f.at(r.Firecracker)); err != nil || sum != r.FirecrackerSHA256 {
		t.Errorf("recorded sum of firecracker = %s, file has %s, %v", r.FirecrackerSHA256, sum, err)
	}
	if got := f.read("/etc/subuid"); got != "dev:100000:65536\nbanger:200000:65536\n" {
		t.Errorf("subuid = %q", got)
	}
	if got := f.read("/etc/subgid"); got != "dev:100000:65536\nbanger:200000:65536\n" {
		t.Errorf("subgid = %q", got)
	}
	for path, mode := range map[string]os.FileMode{
		paths.BinDir + "/banger":             0o755,
		paths.LibexecDir + "/bangerd":        0o755,
		paths.StateDir:                       os.ModeDir | 0o700,
		paths.StateDir + "/identity":         os.ModeDir | 0o700,
		cacheDir:                             os.ModeDir | 0o700,
		paths.HelperDir:                      os.ModeDir | 0o711,
		paths.BlobDir:                        os.ModeDir | 0o700,
		paths.JailDir:                        os.ModeDir | 0o711,
		paths.ConfigFile:                     0o644,
		paths.InstallFile:                    0o644,
		paths.AdminUnits + "/bangerd.socket": 0o644,
	} {
		info, err := os.Lstat(f.at(path))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v, want %v", path, info, err, mode)
			continue
		}
		uid := f.rootUID
		if strings.HasPrefix(path, paths.StateDir) && !strings.HasPrefix(path, paths.HelperDir) || path == cacheDir {
			uid = f.own.uid
		}
		if got := int(info.Sys().(*syscall.Stat_t).Uid); got != uid {
			t.Errorf("%s belongs to %d, want %d", path, got, uid)
		}
	}
	if want := []string{"/boot/vmlinuz-6.1.0-test", "/lib/modules/6.1.0-test"}; !slices.Equal(f.imported, want) {
		t.Errorf("imported %q, want %q", f.imported, want)
	}
	for _, unit := range []string{"bangerd.service", "bangerd.socket", "banger-helper.socket"} {
		if !f.active[unit] || !f.enabled[unit] {
			t.Errorf("%s: active %v, enabled %v", unit, f.active[unit], f.enabled[unit])
		}
	}
	for _, want := range []string{"wrote /usr/local/bin/banger", "made /var/lib/banger\n", "reserved banger:200000:65536 in /etc/subuid",
		"started bangerd.service", "loaded kernel module kvm_amd", "cannot load kernel module tun", `imported kernel "host"`} {
		if !strings.Contains(out, want) {
			t.Errorf("output does not say %q:\n%s", want, out)
		}
	}
}

func TestInstallWherePort53IsTaken(t *testing.T) {
	f := newHost(t)
	f.fail = func(argv []string) error {
		if slices.Equal(argv, []string{"systemctl", "start", "banger-dns.socket"}) {
			return errors.New("Job failed.")
		}
		return nil
	}
	if out := f.mustInstall(); !strings.Contains(out, "warning: cannot start banger-dns.socket") || !f.active["bangerd.service"] {
		t.Errorf("bangerd runs: %v; said:\n%s", f.active["bangerd.service"], out)
	}
}

// A daemon that runs is not restarted for sockets it can do without.
func TestInstallWithNamesStopped(t *testing.T) {
	f := newHost(t)
	f.mustInstall()
	f.active["banger-dns.socket"] = false
	out := f.mustInstall()
	if !strings.Contains(out, "warning: banger-dns.socket does not run") || slices.Contains(f.ran, "systemctl restart bangerd.service") {
		t.Errorf("ran %q and said:\n%s", f.ran, out)
	}
}

func TestInstallAgainChangesNothing(t *testing.T) {
	f := newHost(t)
	f.mustInstall()
	before := f.tree()
	f.put("/sys/module/tun/x", "") // the one module that cannot be loaded here
	out := f.mustInstall()
	if out != "" || len(f.ran) > 0 {
		t.Errorf("said %q and ran %q", out, f.ran)
	}
	after := f.tree()
	for path := range after {
		if strings.HasPrefix(path, "/sys/") {
			delete(after, path)
			delete(before, path)
		}
	}
	if !reflect.DeepEqual(before, after) {
		t.Error("something was written")
	}
}

func TestUpgrade(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(f *fakeHost)
		ran    []string
	}{
		"daemon": {func(f *fakeHost) { f.program("bangerd", "second") }, []string{"systemctl restart bangerd.service"}},
		"agent":  {func(f *fakeHost) { f.program("banger-agent", "second") }, []string{"systemctl restart bangerd.service"}},
		"cli":    {func(f *fakeHost) { f.program("banger", "second") }, nil},
		"helper": {func(f *fakeHost) { f.program("banger-helper", "second") }, []string{"systemctl restart banger-helper.service"}},
		"vmm": {func(f *fakeHost) { f.program("firecracker", "second") }, // its sum is in the record both read
			[]string{"systemctl restart banger-helper.service", "systemctl restart bangerd.service"}},
		"lost unit": {func(f *fakeHost) {
			if err := os.Remove(f.at(f.unitPath("bangerd.service"))); err != nil {
				f.t.Fatal(err)
			}
		}, []string{"systemctl daemon-reload", "systemctl restart bangerd.service"}},
		"lost socket": {func(f *fakeHost) {
			if err := os.Remove(f.at(f.unitPath("bangerd.socket"))); err != nil {
				f.t.Fatal(err)
			}
		}, []string{"systemctl daemon-reload", "systemctl stop bangerd.service bangerd.socket banger-dns.socket",
			"systemctl start bangerd.socket", "systemctl start banger-dns.socket", "systemctl start bangerd.service"}},
		"lost names": {func(f *fakeHost) {
			if err := os.Remove(f.at(f.unitPath("banger-dns.socket"))); err != nil {
				f.t.Fatal(err)
			}
		}, []string{"systemctl daemon-reload", "systemctl stop bangerd.service bangerd.socket banger-dns.socket",
			"systemctl start bangerd.socket", "systemctl start banger-dns.socket", "systemctl start bangerd.service"}},
		"stopped": {func(f *fakeHost) { f.active["bangerd.service"] = false }, []string{"systemctl start bangerd.service"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newHost(t)
			f.mustInstall()
			f.put("/sys/module/tun/x", "")
			f.active["banger-helper.service"] = true
			tt.change(f)
			f.mustInstall()
			if !slices.Equal(f.ran, tt.ran) {
				t.Errorf("ran %q, want %q", f.ran, tt.ran)
			}
			if f.mustInstall() != "" {
				t.Error("the next run still finds something to do")
			}
		})
	}
}

func TestCutOffRunIsFinished(t *testing.T) {
	f := newHost(t)
	f.mustInstall()
	f.put("/sys/module/tun/x", "")
	f.program("bangerd", "second")
	f.fail = func(argv []string) error {
		if slices.Equal(argv, []string{"systemctl", "restart", "bangerd.service"}) {
			return fmt.Errorf("cut off")
		}
		return nil
	}
	if _, err := f.doInstall(); err == nil {
		t.Fatal("no error")
	}
	f.fail = nil
	f.mustInstall()
	if want := []string{"systemctl restart bangerd.service"}; !slices.Equal(f.ran, want) {
		t.Errorf("ran %q, want %q: the new daemon was never started", f.ran, want)
	}
}

func TestRefusesForeignFiles(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(f *fakeHost)
		want    string
	}{
		"program":   {func(f *fakeHost) { f.put(paths.LibexecDir+"/bangerd", "other") }, paths.LibexecDir + "/bangerd"},
		"cli":       {func(f *fakeHost) { f.put(paths.BinDir+"/banger", "other") }, paths.BinDir + "/banger"},
		"unit":      {func(f *fakeHost) { f.put(f.unitPath("bangerd.service"), "[Unit]\n") }, paths.AdminUnits + "/" + "bangerd.service"},
		"state":     {func(f *fakeHost) { f.put(paths.StateDir+"/state.json", "{}") }, paths.StateDir + "/"},
		"file":      {func(f *fakeHost) { f.put(paths.StateDir, "x") }, paths.StateDir + "/"},
		"directory": {func(f *fakeHost) { f.put(f.unitPath("bangerd.socket")+"/x", "x") }, paths.AdminUnits + "/" + "bangerd.socket"},
		"symlink": {func(f *fakeHost) {
			f.put(paths.BinDir+"/other", "first banger")
			if err := os.Symlink("other", f.at(paths.BinDir+"/banger")); err != nil {
				f.t.Fatal(err)
			}
		}, paths.BinDir + "/banger"},
		"changed since": {func(f *fakeHost) {
			f.mustInstall()
			f.put(f.unitPath("bangerd.service"), "[Unit]\n")
		}, paths.AdminUnits + "/" + "bangerd.service"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newHost(t)
			tt.prepare(f)
			before := f.tree()
			out, err := f.doInstall()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("err = %v, want one that names %s", err, tt.want)
			}
			if out != "" || len(f.ran) > 0 || !reflect.DeepEqual(before, f.tree()) {
				t.Errorf("something was changed: %q, %q", out, f.ran)
			}
		})
	}
}

func TestKeepsWhatIsRightAlready(t *testing.T) {
	f := newHost(t)
	f.put(paths.ConfigFile, "log_level = \"debug\"\n")
	f.put(paths.LibexecDir+"/jailer", "first jailer")
	if err := os.Chmod(f.at(paths.LibexecDir+"/jailer"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.mustInstall()
	f.mustUninstall(true)
	if f.read(paths.ConfigFile) != "log_level = \"debug\"\n" || f.read(paths.LibexecDir+"/jailer") != "first jailer" {
		t.Error("a file that no installation wrote is gone")
	}
}

func TestInstallRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		owner   string
		prepare func(f *fakeHost)
		want    string
	}{
		"no owner":      {"", nil, "no owner"},
		"unknown owner": {"nobody-here", nil, "no such user"},
		"root":          {"toor", nil, "may not be root"},
		"odd owner":     {"dev\nUser=root", nil, "not a user name"},
		"specifier":     {"d%v", nil, "not a user name"},
		"no systemd":    {"dev", func(f *fakeHost) { f.remove("/run/systemd/system") }, "systemd does not run"},
		"old systemd":   {"dev", func(f *fakeHost) { f.systemd = "systemd 249 (249.11-0ubuntu3)" }, "needs systemd 252 or newer"},
		"no version":    {"dev", func(f *fakeHost) { f.systemd = "mine" }, `this is "mine"`},
		"cgroup v1":     {"dev", func(f *fakeHost) { f.remove("/sys/fs/cgroup/cgroup.controllers") }, "cgroup v2"},
		"program missing": {"dev", func(f *fakeHost) {
			if err := os.Remove(filepath.Join(f.from, "jailer")); err != nil {
				f.t.Fatal(err)
			}
		}, "cannot install jailer"},
		"user banger": {"dev", func(f *fakeHost) { f.put("/etc/passwd", "banger:x:1001:1001::/:/bin/sh\n") }, `user named "banger"`},
		"no ids left": {"dev", func(f *fakeHost) { f.put("/etc/subuid", "dev:100000:4294867295\n") }, "no run of 65536 free ids"},
		"untrusted manifest": {"dev", func(f *fakeHost) {
			f.put(manifestFile, `{"files":{},"dirs":[]}`)
			if err := os.Chmod(f.at(manifestFile), 0o666); err != nil {
				f.t.Fatal(err)
			}
		}, "cannot trust"},
		"other owner": {"dev", func(f *fakeHost) {
			f.mustInstall()
			text := strings.Replace(f.read(paths.InstallFile), `"dev"`, `"ann"`, 1)
			f.put(paths.InstallFile, text)
		}, "installed for ann"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newHost(t)
			if tt.prepare != nil {
				tt.prepare(f)
			}
			before := f.tree()
			err := f.install(t.Context(), Options{Owner: tt.owner, From: f.from, Out: &f.out})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("err = %v, want %q", err, tt.want)
			}
			if !reflect.DeepEqual(before, f.tree()) {
				t.Error("something was changed")
			}
		})
	}
}

func (f *fakeHost) remove(path string) {
	f.t.Helper()
	if err := os.RemoveAll(f.at(path)); err != nil {
		f.t.Fatal(err)
	}
}

func TestSaysWhenDaemonIsSilent(t *testing.T) {
	f := newHost(t)
	f.down = true
	if _, err := f.doInstall(); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("err = %v", err)
	}
}

func TestHostKernel(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare       func(f *fakeHost)
		file, modules string
	}{
		"running": {func(*fakeHost) {}, "/boot/vmlinuz-6.1.0-test", "/lib/modules/6.1.0-test"},
		"beside its modules": {func(f *fakeHost) {
			f.remove("/boot/vmlinuz-6.1.0-test")
			f.put("/lib/modules/6.1.0-test/vmlinuz", "kernel")
		}, "/lib/modules/6.1.0-test/vmlinuz", "/lib/modules/6.1.0-test"},
		"another, no modules": {func(f *fakeHost) {
			f.remove("/boot/vmlinuz-6.1.0-test")
			f.put("/boot/vmlinuz-6.2.0", "kernel")
		}, "/boot/vmlinuz-6.2.0", ""},
		"none": {func(f *fakeHost) { f.remove("/boot/vmlinuz-6.1.0-test") }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newHost(t)
			tt.prepare(f)
			file, modules, err := f.hostKernel()
			if err != nil || strings.TrimPrefix(file, f.root) != tt.file || strings.TrimPrefix(modules, f.root) != tt.modules {
				t.Errorf("hostKernel = %q, %q, %v", file, modules, err)
			}
		})
	}
}
