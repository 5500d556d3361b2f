package install

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"banger/internal/installed"
	"banger/internal/paths"
	"banger/internal/version"
)

// newPackagedHost is a host on which the package manager has put this version.
func newPackagedHost(t *testing.T) *fakeHost {
	t.Helper()
	f := newHost(t)
	f.layout = paths.Distribution
	f.unpack("v1")
	return f
}

// unpack does what a package manager does, as far as files go.
func (f *fakeHost) unpack(v string) {
	f.t.Helper()
	for _, name := range append([]string{"banger"}, programs...) {
		f.put(f.programPath(name), v+" "+name)
		if err := os.Chmod(f.at(f.programPath(name)), 0o755); err != nil {
			f.t.Fatal(err)
		}
	}
	units, err := staticUnits(paths.Distribution, v)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, u := range units {
		f.put(u.path, u.text)
	}
	f.from = ""
}

func TestPackagedUnitsNameNothingElsewhere(t *testing.T) {
	texts, err := PackageUnits()
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range texts {
		if !strings.HasPrefix(path, "/usr/lib/systemd/system/") || strings.Contains(text, "/usr/local") || strings.Contains(text, "{{") {
			t.Errorf("%s:\n%s", path, text)
		}
		name := filepath.Base(path)
		if strings.HasPrefix(name, "banger") && (strings.HasSuffix(name, ".socket") || strings.HasSuffix(name, ".service")) &&
			!strings.Contains(text, "\nConditionPathExists=/etc/banger/install.toml\n") {
			t.Errorf("%s would run for nobody", path)
		}
	}
}

func TestInstallOfAPackage(t *testing.T) {
	f := newPackagedHost(t)
	package1 := f.tree()
	f.mustInstall()
	r, err := installed.Parse(f.read(paths.InstallFile))
	if err != nil || r.Firecracker != "/usr/libexec/banger/firecracker" || r.FirecrackerSHA256 == "" {
		t.Errorf("record %+v, %v", r, err)
	}
	if f.read(ownerPath("bangerd.service")) == "" || f.exists(paths.AdminUnits+"/bangerd.service") || f.exists(paths.Local.Bin+"/banger") {
		t.Error("wrote what the package has, or not what it has not")
	}
	f.put("/sys/module/tun/x", "")
	if out := f.mustInstall(); out != "" || len(f.ran) > 0 {
		t.Errorf("the second time it says %q and runs %q", out, f.ran)
	}
	if s := f.status(); !s.Healthy() || !s.Packaged || len(s.Changed) > 0 {
		t.Errorf("%+v", s)
	}

	out := f.mustUninstall(true)
	if !strings.Contains(out, "left the programs and units of the package") {
		t.Errorf("uninstall says %q", out)
	}
	now := f.tree()
	for path := range package1 {
		if strings.HasPrefix(path, "/usr/") && now[path] != package1[path] {
			t.Errorf("%s was %q, is %q", path, package1[path], now[path])
		}
	}
	for _, path := range []string{etcDir, paths.StateDir, modulesFile, ownerPath("bangerd.service"), filepath.Dir(ownerPath("bangerd.service"))} {
		if f.exists(path) {
			t.Errorf("left %s", path)
		}
	}
}

func TestUpgradeOfAPackage(t *testing.T) {
	f := newPackagedHost(t)
	f.mustInstall()
	f.put("/sys/module/tun/x", "")
	f.active["banger-helper.service"] = true
	f.active["banger-vm-0123456789ab.service"] = true

	// A unit that says the same in another version is no reason to restart it; a
	// socket would have to be closed for that.
	old := version.Version
	t.Cleanup(func() { version.Version = old })
	version.Version = "v2"
	f.unpack("v2")
	f.out.Reset()
	f.ran = nil
	if err := f.upgrade(t.Context(), Options{Out: &f.out}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"systemctl daemon-reload", "systemctl restart banger-helper.service", "systemctl restart bangerd.service"}; !slices.Equal(f.ran, want) {
		t.Errorf("ran %q, want %q", f.ran, want)
	}
	if !f.active["banger-vm-0123456789ab.service"] {
		t.Error("the VM was ended")
	}

	// One that was cut off between unpacking and restarting is finished.
	f.unpack("v3")
	f.fail = func(argv []string) error {
		if slices.Contains(argv, "restart") {
			return &commandError{argv: argv, code: 1}
		}
		return nil
	}
	if err := f.upgrade(t.Context(), Options{Out: &f.out}); err == nil {
		t.Fatal("no error")
	}
	f.fail, f.ran = nil, nil
	if err := f.upgrade(t.Context(), Options{Out: &f.out}); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(f.ran, "systemctl restart bangerd.service") {
		t.Errorf("ran %q", f.ran)
	}
}

func TestPackageRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(f *fakeHost)
		want    string
	}{
		"programs from elsewhere": {func(f *fakeHost) { f.from = "/x" }, "this banger is a package's"},
		"unit changed":            {func(f *fakeHost) { f.put(f.unitPath("bangerd.service"), "mine") }, "not as its package has them"},
		"unit gone":               {func(f *fakeHost) { f.remove(f.unitPath("bangerd.service")) }, "/usr/lib/systemd/system/bangerd.service"},
		"program gone":            {func(f *fakeHost) { f.remove("/usr/libexec/banger/jailer") }, "cannot install jailer"},
		"local banger":            {func(f *fakeHost) { f.put(paths.Local.Bin+"/banger", "") }, "/usr/local/bin/banger"},
		"hidden unit":             {func(f *fakeHost) { f.put(paths.AdminUnits+"/bangerd.service", "") }, paths.AdminUnits + "/bangerd.service"},
		"local installation": {func(f *fakeHost) {
			f.mustInstall()
			f.put(paths.InstallFile, strings.ReplaceAll(f.read(paths.InstallFile), "/usr/libexec", "/usr/local/libexec"))
		}, "its programs are in /usr/local/libexec/banger"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newPackagedHost(t)
			tt.prepare(f)
			before := f.tree()
			if out, err := f.doInstall(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("err = %v, want %q; said %q", err, tt.want, out)
			}
			if !reflect.DeepEqual(before, f.tree()) {
				t.Error("something was changed")
			}
		})
	}
}

// Neither of two bangers touches what the other one installed.
func TestOtherLayoutsInstallationIsLeft(t *testing.T) {
	f := newHost(t)
	f.mustInstall()
	before := f.tree()
	f.layout = paths.Distribution
	for verb, do := range map[string]func() error{
		"uninstall": func() error { return f.uninstall(t.Context(), true) },
		"restart":   func() error { return f.restart(t.Context()) },
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "/usr/local/libexec/banger") {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if !reflect.DeepEqual(before, f.tree()) {
		t.Error("something was changed")
	}
	if s := f.status(); !s.Healthy() || s.Packaged || len(s.Changed) > 0 {
		t.Errorf("%+v", s)
	}
	f.layout = paths.Local
	f.put("/usr/bin/banger", "")
	if _, err := f.doInstall(); err == nil || !strings.Contains(err.Error(), "/usr/bin/banger") {
		t.Errorf("beside a package: %v", err)
	}
}

func TestUpgrade1To2(t *testing.T) {
	f := newHost(t)
	if err := f.upgrade(t.Context(), Options{Out: &f.out}); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("without banger: %v", err)
	}
	old := version.Version
	t.Cleanup(func() { version.Version = old })
	version.Version = "v1"
	f.mustInstall()
	f.put("/sys/module/tun/x", "")
	version.Version = "v2"
	f.program("bangerd", "second")
	f.out.Reset()
	f.ran = nil
	if err := f.upgrade(t.Context(), Options{From: f.from, Out: &f.out}); err != nil {
		t.Fatal(err)
	}
	out := f.out.String()
	if !strings.Contains(out, "upgraded banger from v1 to v2") || strings.Count(out, "wrote ") != 2 || len(f.ran) != 1 {
		t.Errorf("ran %q and said:\n%s", f.ran, out)
	}
	// The units say what they said before.
	if first, _, _ := strings.Cut(f.read(f.unitPath("bangerd.service")), "\n"); !strings.HasPrefix(first, "# banger v1 ") {
		t.Errorf("the unit begins with %q", first)
	}
	if s := f.status(); s.Version != "v2" || len(s.Changed) > 0 {
		t.Errorf("%+v", s)
	}
}
