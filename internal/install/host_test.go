package install

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/paths"
)

// fakeHost is a host whose root is a temporary directory and whose systemd
// remembers what it was told.
type fakeHost struct {
	*host
	t        *testing.T
	out      bytes.Buffer
	ran      []string
	active   map[string]bool
	enabled  map[string]bool
	kernels  []api.Kernel
	imported []string
	down     bool // bangerd does not answer
	fail     func(argv []string) error
	own      owner
	from     string
	accounts map[string]string // what getent lists besides the files
	systemd  string            // what it says it is
}

func newHost(t *testing.T) *fakeHost {
	t.Helper()
	f := &fakeHost{t: t, active: map[string]bool{}, enabled: map[string]bool{}, from: t.TempDir(), systemd: "systemd 252 (252.39-1~deb12u1)"}
	f.own = owner{name: "dev", uid: os.Geteuid(), gid: os.Getegid()}
	if f.own.uid == 0 {
		f.own.uid, f.own.gid = 1000, 1000
	}
	f.host = &host{root: t.TempDir(), layout: paths.Local, rootUID: os.Geteuid(), rootGID: os.Getegid(), run: f.command, out: &f.out,
		daemon: &http.Client{Transport: f}, now: func() time.Time { return time.Unix(1790000000, 0) }}
	for _, dir := range []string{"run/systemd/system", "sys/fs/cgroup", "sys/module", "etc/systemd/system", "etc/udev", "usr/local", "var/lib", "var/cache", "proc/sys/kernel", "boot", "lib/modules/6.1.0-test"} {
		if err := os.MkdirAll(f.at(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.put("/sys/fs/cgroup/cgroup.controllers", "cpu memory")
	f.put("/proc/sys/kernel/osrelease", "6.1.0-test\n")
	f.put("/proc/cpuinfo", "flags\t\t: fpu svm sse\n")
	f.put("/boot/vmlinuz-6.1.0-test", "kernel")
	f.put("/etc/passwd", "root:x:0:0::/:/bin/sh\ndev:x:1000:1000::/:/bin/sh\n")
	f.put("/etc/subuid", "dev:100000:65536\n")
	f.put("/etc/subgid", "dev:100000:65536") // no final newline
	for _, name := range append([]string{"banger"}, programs...) {
		f.program(name, "first "+name)
	}
	return f
}

func (f *fakeHost) program(name, content string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.from, name), []byte(content), 0o700); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeHost) put(path, content string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(f.at(path)), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(f.at(path), []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeHost) read(path string) string {
	f.t.Helper()
	raw, err := os.ReadFile(f.at(path))
	if err != nil {
		f.t.Fatal(err)
	}
	return string(raw)
}

func (f *fakeHost) exists(path string) bool {
	_, err := os.Lstat(f.at(path))
	return err == nil
}

// doInstall installs and returns what was printed.
func (f *fakeHost) doInstall() (string, error) {
	f.out.Reset()
	f.ran = nil
	err := f.install(f.t.Context(), Options{Owner: "dev", From: f.from, Out: &f.out,
		ImportKernel: func(_ context.Context, kernel, modules string) error {
			f.imported = append(f.imported, strings.TrimPrefix(kernel, f.root), strings.TrimPrefix(modules, f.root))
			f.kernels = append(f.kernels, api.Kernel{Name: DefaultKernel})
			return nil
		}})
	return f.out.String(), err
}

func (f *fakeHost) mustInstall() string {
	f.t.Helper()
	out, err := f.doInstall()
	if err != nil {
		f.t.Fatalf("install: %v\n%s", err, out)
	}
	return out
}

func (f *fakeHost) mustUninstall(purge bool) string {
	f.t.Helper()
	f.out.Reset()
	f.ran = nil
	if err := f.uninstall(f.t.Context(), purge); err != nil {
		f.t.Fatalf("uninstall: %v\n%s", err, f.out.String())
	}
	return f.out.String()
}

// tree maps every path to its mode, inode and content, to see that nothing
// changed.
func (f *fakeHost) tree() map[string]string {
	f.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(f.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := []byte{}
		if info.Mode().IsRegular() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		all[strings.TrimPrefix(path, f.root)] = fmt.Sprintf("%v %v %s", info.Mode(), info.ModTime(), content)
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return all
}

// RoundTrip is bangerd.
func (f *fakeHost) RoundTrip(r *http.Request) (*http.Response, error) {
	var answer any
	switch {
	case f.down || !f.active["bangerd.service"]:
		return nil, fmt.Errorf("connection refused")
	case r.URL.Path == "/v1/version":
		answer = api.Version{Version: "dev"}
	case r.URL.Path == "/v1/kernels":
		answer = f.kernels
	default:
		return nil, fmt.Errorf("unexpected %s", r.URL.Path)
	}
	raw, err := json.Marshal(answer)
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(raw))}, err
}

// command is systemctl, getent and modprobe.
func (f *fakeHost) command(ctx context.Context, argv ...string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if f.fail != nil {
		if err := f.fail(argv); err != nil {
			return "", err
		}
	}
	var names []string
	for _, a := range argv[1:] {
		if strings.Contains(a, ".") {
			names = append(names, a)
		}
	}
	verb := strings.Join(argv[:min(2, len(argv))], " ")
	if verb != "systemctl show" && verb != "systemctl list-units" && verb != "systemctl --version" && argv[0] != "getent" {
		f.ran = append(f.ran, strings.Join(argv, " "))
	}
	set := func(m map[string]bool, value bool) {
		for _, n := range names {
			m[n] = value
		}
	}
	switch {
	case verb == "systemctl --version":
		return f.systemd + "\n+PAM +AUDIT\n", nil
	case argv[0] == "getent" && len(argv) == 2:
		return f.accounts[argv[1]], nil
	case argv[0] == "getent" && argv[2] == "dev":
		return fmt.Sprintf("dev:x:%d:%d:Dev:/home/dev:/bin/sh\n", f.own.uid, f.own.gid), nil
	case argv[0] == "getent" && argv[2] == "toor":
		return "toor:x:0:0::/root:/bin/sh\n", nil
	case argv[0] == "getent":
		return "", &commandError{argv: argv, code: 2}
	case argv[0] == "modprobe" && argv[1] == "tun":
		return "", &commandError{argv: argv, code: 1, stderr: "tun not found"}
	case argv[0] == "modprobe":
		return "", os.Mkdir(f.at("/sys/module/"+argv[1]), 0o755)
	case verb == "systemctl show":
		unit := argv[len(argv)-1]
		text := map[bool]string{true: "active", false: "inactive"}[f.active[unit]]
		file := map[bool]string{true: "enabled", false: "disabled"}[f.enabled[unit]]
		return "ActiveState=" + text + "\nUnitFileState=" + file + "\n", nil
	case verb == "systemctl list-units":
		return f.listUnits(names), nil
	case verb == "systemctl enable", verb == "systemctl disable":
		set(f.enabled, verb == "systemctl enable")
	case verb == "systemctl start", verb == "systemctl restart", verb == "systemctl stop":
		set(f.active, verb != "systemctl stop")
	case argv[len(argv)-1] == "forget-network":
	case verb == "systemctl daemon-reload":
	default:
		return "", fmt.Errorf("unexpected command %q", argv)
	}
	return "", nil
}

func (f *fakeHost) listUnits(patterns []string) string {
	var lines []string
	for unit, active := range f.active {
		matches := slices.ContainsFunc(patterns, func(p string) bool {
			ok, err := filepath.Match(p, unit)
			return ok && err == nil
		})
		if active && matches {
			lines = append(lines, unit+" loaded active running Something\n")
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
