//go:build e2e

// Package hostile holds scenarios in which somebody means harm: code in place of
// a VMM, a process of the owner, a guest. They run in the lab like those of
// test/e2e.
package hostile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/paths"
	"banger/test/host"
)

// aside is where the real Firecracker waits meanwhile, for a later run too.
func aside(t testing.TB) (program, kept string) {
	program = host.Owner(t).Firecracker
	return program, program + ".real"
}

// looser lets a Go program come as far as the attempts: the unit's filter holds
// what Firecracker calls. So what stands behind the filter is tried, too. What is
// not in here is the filter's to refuse.
const (
	looser     = "/run/systemd/system/banger-vm-.service.d/90-hostile.conf"
	looserText = "[Service]\nSystemCallFilter=@default @file-system @process @chown @basic-io @signal setrlimit ioctl\n"
)

// installVMM puts this test's program in place of Firecracker until the test ends.
func installVMM(t *testing.T, p plan) {
	t.Helper()
	restoreVMM(t) // of a run that was killed
	t.Cleanup(func() { restoreVMM(t) })
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	program, kept := aside(t)
	if err := errors.Join(os.MkdirAll(filepath.Dir(looser), 0o755), os.WriteFile(looser, []byte(looserText), 0o644)); err != nil {
		t.Fatal(err)
	}
	host.Root(t, "systemctl", "daemon-reload")
	fresh := program + ".hostile"
	if err := errors.Join(os.WriteFile(fresh, append(append(self, planMark...), text...), 0o755), os.Chmod(fresh, 0o755),
		os.Rename(program, kept), os.Rename(fresh, program)); err != nil {
		t.Fatal(err)
	}
}

func restoreVMM(t *testing.T) {
	t.Helper()
	program, kept := aside(t)
	if err := os.Rename(kept, program); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	err := os.Remove(looser)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	host.Root(t, "systemctl", "daemon-reload")
}

// normal starts a VM with the real Firecracker.
func normal(t *testing.T) api.VM {
	t.Helper()
	name := fmt.Sprintf("n-%x", time.Now().UnixNano())
	t.Cleanup(func() { host.Banger(t, "vm", "delete", "--force", name) })
	host.Must(t, "vm", "run", "-d", "--name", name, "--memory", "256M")
	return show(t, name)
}

func show(t *testing.T, name string) (v api.VM) {
	t.Helper()
	if err := json.Unmarshal([]byte(host.Must(t, "vm", "show", "--json", name)), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// hostileVM is a VM whose VMM is this program.
type hostileVM struct {
	t    *testing.T
	vm   api.VM
	run  *exec.Cmd
	http *http.Client
}

// conquered starts a VM that comes past vm.handover and is hostile from then on.
func conquered(t *testing.T) *hostileVM {
	t.Helper()
	installVMM(t, plan{})
	name := fmt.Sprintf("h-%x", time.Now().UnixNano())
	h := &hostileVM{t: t, run: host.Session(t, "vm", "run", "-d", "--name", name, "--memory", "128M")}
	t.Cleanup(func() {
		host.Banger(t, "vm", "delete", "--force", name)
		_ = h.run.Wait() // its guest never came up
	})
	if err := h.run.Start(); err != nil {
		t.Fatal(err)
	}
	h.http = &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", h.root()+paths.JailAPI)
		}}}
	host.Eventually(t, 3*time.Minute, func() error {
		r := host.Banger(t, "vm", "show", "--json", name)
		if err := json.Unmarshal([]byte(r.Stdout), &h.vm); err != nil {
			return err
		}
		if h.vm.State == api.StateFailed {
			t.Fatalf("it does not start: %s", h.vm.Reason)
		}
		var state struct{ State string }
		if err := h.ask(http.MethodGet, "/", nil, &state); err != nil || state.State != "Running" {
			return fmt.Errorf("it is %q: %w", state.State, err)
		}
		return nil
	})
	restoreVMM(t)
	return h
}

func (h *hostileVM) root() string { return jailRoot(h.vm.ID) }

func jailRoot(id string) string { return filepath.Join(paths.JailDir, id, "root") }

// ask talks to the hostile program, as root.
func (h *hostileVM) ask(method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.t.Context()), 3*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://vmm"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := h.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		words, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("it answers %s: %s", resp.Status, words)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// answers fails the test unless banger and another VM answer in a bounded time.
func answers(t *testing.T, while string, other api.VM) {
	t.Helper()
	const patience = 30 * time.Second // the lab is emulated
	begin := time.Now()
	host.Must(t, "vm", "list")
	daemon := time.Since(begin)
	host.Must(t, "vm", "exec", other.Name, "--", "true")
	t.Logf("%s: vm list %.1fs, command in another VM %.1fs", while, daemon.Seconds(), (time.Since(begin) - daemon).Seconds())
	if all := time.Since(begin); all > patience {
		t.Errorf("%s: banger took %s", while, all)
	}
}

// secured is what must be the same afterwards: owner, mode and ACL of whatever
// the helper could be led astray to, and the shared kernels.
func secured(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, path := range append(host.Glob(t, paths.BlobDir+"/*"), "/", "/etc", "/etc/passwd", "/etc/shadow", paths.InstallFile,
		"/run", "/run/banger", "/run/banger/bangerd.sock", "/run/banger-helper", paths.HelperSocket, paths.StateDir, paths.HelperDir,
		filepath.Dir(paths.JailDir), paths.JailDir, "/run/systemd/private") {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		acl := make([]byte, 256)
		n, err := unix.Lgetxattr(path, "system.posix_acl_access", acl)
		if err != nil {
			n = 0
		}
		all[path] = fmt.Sprintf("%d:%d %o %x", st.Uid, st.Gid, st.Mode, acl[:n])
	}
	return all
}

// Whatever a VMM does with its jail before the helper takes it away: its VM does
// not start, and nothing of the host has other rights than before.
func TestVMMPlantsThingsBeforeTheHandover(t *testing.T) {
	before, inventory := secured(t), host.Inventory(t)
	for what, want := range map[plan]string{
		{atStart, "link the helper's socket"}:  "is not what it should be",
		{atStart, "link bangerd's socket"}:     "is not what it should be",
		{atVsock, "link run to the host's"}:    "not a directory",
		{atVsock, "kernel as api.sock"}:        "is not what it should be",
		{atVsock, "kernel as vsock.sock"}:      "is not what it should be",
		{atVsock, "vsock.sock with two names"}: "has 2 names",
		{atVsock, "a thousand files"}:          "too many files",
	} {
		t.Run(what.Do, func(t *testing.T) {
			installVMM(t, what)
			begin := time.Now()
			r := host.Banger(t, "vm", "run", "--rm", "--memory", "256M", "--", "true")
			t.Logf("%.1fs: %s", time.Since(begin).Seconds(), strings.TrimSpace(r.Stderr))
			if r.Code != 125 || !strings.Contains(r.Stderr, want) {
				t.Errorf("exit %d, want 125 and %q", r.Code, want)
			}
		})
	}
	if now := secured(t); !equal(before, now) {
		t.Errorf("was %v\nnow %v", before, now)
	}
	host.Eventually(t, 20*time.Second, func() error {
		for _, thing := range host.Inventory(t) { // what was there may have gone meanwhile
			if !slices.Contains(inventory, thing) {
				return fmt.Errorf("left %q", thing)
			}
		}
		return nil
	})
}

func equal(a, b map[string]string) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}

// A VMM that exchanges the helper's targets in a tight loop wins nothing, however
// often; that its own VM does not start is its own affair.
func TestVMMSwapsFilesWhileTheHelperWorks(t *testing.T) {
	before := secured(t)
	installVMM(t, plan{atVsock, "swap"})
	begin := time.Now()
	for range 3 {
		name := fmt.Sprintf("s-%x", time.Now().UnixNano())
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // past handover it would wait for its guest
		c := host.Command(t, ctx, "vm", "run", "-d", "--name", name, "--memory", "256M")
		out, _ := c.CombinedOutput()
		cancel()
		t.Logf("%s", bytes.TrimSpace(out))
		host.Banger(t, "vm", "delete", "--force", name)
	}
	done := host.Root(t, "journalctl", "--unit=banger-helper", "--output=cat", "--grep=verb=vm.handover", fmt.Sprintf("--since=@%d", begin.Unix()))
	if n := strings.Count(done, "verb=vm.handover"); n < 2 {
		t.Errorf("%d of three starts came as far as the swap", n)
	}
	said := host.Root(t, "journalctl", "--namespace=banger", "--quiet", "--output=cat", fmt.Sprintf("--since=@%d", begin.Unix()))
	if n := strings.Count(said, swapping); n < 2 {
		t.Errorf("in %d of three starts something was swapped", n)
	}
	if now := secured(t); !equal(before, now) {
		t.Errorf("was %v\nnow %v", before, now)
	}
}

// The VMM is hostile from vm.handover on, as if its guest had broken out.
func TestVMMTriesEverything(t *testing.T) {
	before := secured(t)
	other := normal(t)
	h := conquered(t)
	var all []result
	record := host.Owner(t)
	address := netip.MustParsePrefix(record.Network)
	known := facts{Other: jailRoot(other.ID), UID: record.UIDBase + other.Slot, Net: address.Addr().String()}
	if err := h.ask(http.MethodPost, "/attempts", known, &all); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i, r := range all {
		t.Logf("%-40s %s", r.Name, r.Err)
		if control := i < len(allowed); r.Refused == control || (r.Err == "") != control {
			t.Errorf("%s: %q", r.Name, r.Err)
		}
		if r.Refused {
			refused++
		}
	}
	if len(all) != len(allowed)+len(attempts) {
		t.Errorf("%d results", len(all))
	}
	t.Logf("%d attempts refused", refused)
	if now := secured(t); !equal(before, now) {
		t.Errorf("was %v\nnow %v", before, now)
	}

	foreignSocket(t, other)
	answers(t, "quiet", other)
	limit := host.Read(t, "/sys/fs/cgroup/banger.slice/"+h.vm.Unit+"/pids.max")
	if err := h.ask(http.MethodPost, "/bomb/tasks", nil, nil); err != nil {
		t.Fatal(err)
	}
	host.Eventually(t, 30*time.Second, func() error {
		events := host.Read(t, "/sys/fs/cgroup/banger.slice/"+h.vm.Unit+"/pids.events")
		if events == "max 0" {
			return fmt.Errorf("the limit of %s tasks was not met", limit)
		}
		return nil
	})
	answers(t, "while it forks ("+limit+" tasks)", other)
	host.Banger(t, "vm", "kill", h.vm.Name)
	host.WantGone(t, h.vm.ID, 20*time.Second)
}

// foreignSocket puts a socket of somebody else where bangerd looks for the VMM's;
// only root can any more.
func foreignSocket(t *testing.T, v api.VM) {
	t.Helper()
	path := jailRoot(v.ID) + paths.JailAPI
	if err := os.Rename(path, path+".own"); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if r := host.Banger(t, "vm", "pause", v.Name); r.Code == 0 || !strings.Contains(r.Stderr, "uid 0 listens") {
		t.Errorf("bangerd talks to whoever listens: %+v", r)
	}
	if err := errors.Join(l.Close(), os.Rename(path+".own", path)); err != nil {
		t.Fatal(err)
	}
	host.Must(t, "vm", "pause", v.Name)
	host.Must(t, "vm", "resume", v.Name)
}

// The kernel ends a VMM that takes more memory than it was given, and no other.
func TestVMMFillsItsMemory(t *testing.T) {
	other := normal(t)
	h := conquered(t)
	t.Logf("memory.max %s", host.Read(t, "/sys/fs/cgroup/banger.slice/"+h.vm.Unit+"/memory.max"))
	if err := h.ask(http.MethodPost, "/bomb/memory", nil, nil); err != nil {
		t.Fatal(err)
	}
	answers(t, "meanwhile", other)
	host.WantGone(t, h.vm.ID, 3*time.Minute)
	exit := host.Read(t, filepath.Join(paths.ExitDir, h.vm.ID+".json"))
	if !strings.Contains(exit, "oom-kill") {
		t.Errorf("systemd says %s", exit)
	}
	answers(t, "after it", other)
	if v := show(t, other.Name); v.State != api.StateRunning {
		t.Errorf("the other is %s: %s", v.State, v.Reason)
	}
}
