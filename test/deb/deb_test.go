//go:build deb

// Package deb holds the test of the Debian package: what a host goes through
// from its first to its last day with it. Run as root in the lab, which is made a
// plain host first: make test-package.
package deb

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/install"
	"banger/internal/paths"
	"banger/test/host"
)

const (
	packages = "/var/tmp/banger-packages"
	owner    = "dev"
)

// run runs a command as root and returns what it says and whether it succeeded.
func run(t *testing.T, argv ...string) (string, bool) {
	t.Helper()
	c := exec.CommandContext(context.WithoutCancel(t.Context()), argv[0], argv[1:]...)
	c.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	out, err := c.CombinedOutput()
	t.Logf("%s\n%s", strings.Join(argv, " "), out)
	return string(out), err == nil
}

func must(t *testing.T, argv ...string) string {
	t.Helper()
	out, ok := run(t, argv...)
	if !ok {
		t.Fatalf("%s failed", strings.Join(argv, " "))
	}
	return out
}

// files lists every path of the host but what records that anything happened.
func files(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, top := range []string{"/etc", "/usr", "/var", "/opt", "/root", "/home", "/run/banger", "/run/banger-helper", "/run/systemd/transient"} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			switch {
			case os.IsNotExist(err):
				return nil
			case err != nil:
				return err
			case d.IsDir() && slices.Contains([]string{packages, "/var/lib/dpkg", "/var/cache/apt", "/var/lib/apt", "/var/cache/debconf", "/var/tmp", "/var/lib/systemd"}, path):
				return fs.SkipDir
			case strings.HasPrefix(path, "/var/log/") && !strings.Contains(path, ".banger"), strings.HasSuffix(path, "-") && strings.HasPrefix(path, "/etc/"):
				return nil
			}
			all[path] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func wantSame(t *testing.T, when string, before map[string]bool) {
	t.Helper()
	now := files(t)
	for _, path := range slices.Sorted(maps.Keys(now)) {
		if !before[path] {
			t.Errorf("%s: left %s", when, path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(before)) {
		if !now[path] {
			t.Errorf("%s: %s is gone", when, path)
		}
	}
	if left := host.Inventory(t); len(left) > 0 {
		t.Errorf("%s: left %q", when, left)
	}
	for _, table := range []string{"/etc/subuid", "/etc/subgid"} {
		if strings.Contains(host.Read(t, table), "banger:") {
			t.Errorf("%s: %s has a range for banger", when, table)
		}
	}
	if _, err := os.Stat("/sys/class/net/br-fc"); err == nil {
		t.Errorf("%s: left the bridge", when)
	}
	if out, _ := run(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "banger*.service", "banger*.socket", "banger.slice", "*@banger.*"); strings.Contains(strings.ReplaceAll(out, "banger-machine-", ""), "banger") {
		t.Errorf("%s: systemd still has\n%s", when, out)
	}
}

func status(t *testing.T) (s install.Status) {
	t.Helper()
	out, _ := run(t, "/usr/bin/banger", "system", "status", "--json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func bootID(t *testing.T) string {
	t.Helper()
	return host.Must(t, "vm", "exec", "box", "--", "cat", "/proc/sys/kernel/random/boot_id")
}

// image is busybox and nothing else.
func image(t *testing.T) []byte {
	t.Helper()
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "root/", "tmp/", "var/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, busybox)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/root:/bin/sh\n"))
	for applet := range strings.FieldsSeq("sh true cat sync") {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPackageFromFirstToLastDay(t *testing.T) {
	// The lab comes with banger as `make build` and `system install` bring it.
	local := filepath.Join(paths.Local.Bin, "banger")
	if _, err := os.Stat(local); err == nil {
		keepsWhatIsNotThePackages(t, local)
		must(t, local, "system", "uninstall", "--purge", "--force")
	}
	plain := files(t)
	for path := range plain {
		if base := filepath.Base(path); strings.Contains(base, "banger") && !strings.Contains(base, "banger-machine") {
			t.Errorf("a purge of a local installation left %s", path)
		}
	}
	wantSame(t, "after that purge", plain)

	must(t, "dpkg", "-i", packages+"/1.deb")
	if out, _ := run(t, "systemctl", "is-enabled", "bangerd.service", "bangerd.socket", "banger-helper.socket"); strings.Contains(out, "enabled") {
		t.Errorf("the package alone enables something: %s", out)
	}
	run(t, "systemctl", "start", "bangerd.service") // skipped, says systemd
	if pid := host.MainPID(t, "bangerd.service"); pid != 0 {
		t.Fatal("bangerd runs for nobody")
	}
	if out, ok := run(t, "/usr/bin/banger", "system", "install", "--owner", owner, "--from", packages); ok || !strings.Contains(out, "package") {
		t.Errorf("--from: %s", out)
	}
	must(t, "/usr/bin/banger", "system", "install", "--owner", owner)
	if s := status(t); !s.Healthy() || !s.Packaged || s.Owner != owner || s.Version != "v0.0.1" || len(s.Changed) > 0 {
		t.Errorf("%+v", s)
	}
	// A banger from elsewhere keeps its hands off.
	elsewhere := t.TempDir()
	for _, path := range append(host.Glob(t, paths.Distribution.Libexec+"/*"), "/usr/bin/banger") {
		if err := os.Link(path, filepath.Join(elsewhere, filepath.Base(path))); err != nil {
			must(t, "cp", path, elsewhere)
		}
	}
	for _, args := range [][]string{{"install", "--owner", owner}, {"upgrade"}, {"restart"}, {"uninstall", "--force"}} {
		if out, ok := run(t, append([]string{elsewhere + "/banger", "system"}, args...)...); ok || !strings.Contains(out, "/usr/bin/banger") {
			t.Errorf("another banger's %v: %s", args, out)
		}
	}

	if r := host.BangerIn(t, image(t), "image", "import", "small", "-"); r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	host.Must(t, "vm", "run", "-d", "--name", "box", "--image", "small")
	host.Must(t, "vm", "exec", "box", "--", "sh", "-c", "echo kept >/var/kept; sync")
	boot := bootID(t)
	begun := time.Now()
	if out := must(t, "dpkg", "-i", packages+"/2.deb"); !strings.Contains(out, "upgraded banger from v0.0.1 to v0.0.2") {
		t.Errorf("the upgrade says %s", out)
	}
	t.Logf("upgrade with a running VM: %s", time.Since(begun).Round(time.Second/10))
	if now := bootID(t); now != boot {
		t.Errorf("boot id %s, was %s", now, boot)
	}
	if s := status(t); !s.Healthy() || s.Version != "v0.0.2" || s.VMs != 1 || len(s.Changed) > 0 {
		t.Errorf("%+v", s)
	}
	if out := host.Must(t, "version"); strings.Count(out, "v0.0.2") != 2 {
		t.Errorf("banger and bangerd are %s", out)
	}
	must(t, "dpkg", "-i", packages+"/2.deb") // once more
	if now := bootID(t); now != boot {
		t.Errorf("boot id %s, was %s", now, boot)
	}

	// A removal that fails in the middle is taken back: dpkg calls postinst for that.
	must(t, "chattr", "+i", paths.SysctlFile)
	if out, ok := run(t, "dpkg", "-r", "banger"); ok || !strings.Contains(out, paths.SysctlFile) {
		t.Errorf("removed with a file that stays: %s", out)
	}
	must(t, "chattr", "-i", paths.SysctlFile)
	if s := status(t); !s.Healthy() || s.Version != "v0.0.2" || len(s.Changed) > 0 {
		t.Errorf("after a removal that failed: %+v", s)
	}
	host.Must(t, "vm", "start", "box")

	must(t, "dpkg", "-r", "banger")
	if left := host.Inventory(t); len(left) > 0 {
		t.Errorf("removed, and left %q", left)
	}
	for _, path := range []string{paths.StateDir + "/banger.db", paths.ConfigFile} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("removed, and the data is gone: %v", err)
		}
	}
	for _, path := range []string{paths.InstallFile, "/usr/bin/banger", paths.Distribution.Libexec, "/run/banger", paths.SysctlFile} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("removed, and left %s", path)
		}
	}

	must(t, "dpkg", "-i", packages+"/1.deb")
	must(t, "/usr/bin/banger", "system", "install", "--owner", owner)
	host.Must(t, "vm", "start", "box")
	if got := host.Must(t, "vm", "exec", "box", "--", "cat", "/var/kept"); got != "kept\n" {
		t.Errorf("after removal and installation: %q", got)
	}
	must(t, "dpkg", "-P", "banger")
	wantSame(t, "after the purge", plain)
	if err := systemdIsWell(t); err != nil {
		t.Error(err)
	}
}

// keepsWhatIsNotThePackages purges a package that was never used, on a host where an
// installation of other programs was uninstalled and left its VMs.
func keepsWhatIsNotThePackages(t *testing.T, local string) {
	t.Helper()
	programs := t.TempDir()
	for _, path := range append(host.Glob(t, paths.Local.Libexec+"/*"), local) {
		must(t, "cp", path, programs)
	}
	must(t, local, "system", "uninstall", "--force")
	must(t, "dpkg", "-i", packages+"/1.deb")
	must(t, "dpkg", "-P", "banger")
	if _, err := os.Stat(paths.StateDir + "/banger.db"); err != nil {
		t.Errorf("the package's purge took another installation's data: %v", err)
	}
	must(t, programs+"/banger", "system", "install", "--owner", owner)
}

// systemdIsWell tells of units that the package's end broke.
func systemdIsWell(t *testing.T) error {
	t.Helper()
	if out, _ := run(t, "systemctl", "list-units", "--failed", "--plain", "--no-legend"); strings.Contains(out, "banger") {
		return fmt.Errorf("failed units:\n%s", out)
	}
	return nil
}
