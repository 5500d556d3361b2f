//go:build e2e

// Package e2e holds the scenarios: what a person does with an installed
// banger, on a host with KVM. Run as root on such a host, e.g. in the lab:
// make test. Each test counts what is left behind.
package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/test/host"
)

// leavesNothing fails the test if it leaves anything of a VM behind.
func leavesNothing(t *testing.T) {
	t.Helper()
	banger(t, "doctor") // the helper may have left, and would count later
	before, files, open := inventory(t), vmFiles(t), descriptors(t)
	t.Cleanup(func() {
		// What systemd does after a VMM's end goes on when banger has answered.
		eventually(t, 15*time.Second, func() error {
			if now := inventory(t); !slices.Equal(now, before) {
				return fmt.Errorf("before %q, now %q", before, now)
			}
			if now := vmFiles(t); !slices.Equal(now, files) {
				return fmt.Errorf("before %q, now %q", files, now)
			}
			// Idle connections come and go; a leak of one for each VM does not go.
			if now := descriptors(t); now > open+8 {
				return fmt.Errorf("services had %d descriptors, now %d", open, now)
			}
			return nil
		})
	})
}

// running starts a VM for a test and deletes it at its end.
func running(t *testing.T, args ...string) api.VM {
	t.Helper()
	name := "t-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	t.Cleanup(func() {
		if r := banger(t, "vm", "delete", "--force", name); r.Code != 0 && !strings.Contains(r.Stderr, "there is no VM") {
			t.Errorf("delete: %+v", r)
		}
	})
	must(t, append([]string{"vm", "run", "-d", "--name", name}, args...)...) // one that fails leaves a VM too
	return show(t, name)
}

func show(t testing.TB, name string) api.VM {
	t.Helper()
	var v api.VM
	if err := json.Unmarshal([]byte(must(t, "vm", "show", "--json", name)), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestRunPassesTheExitStatusThrough(t *testing.T) {
	leavesNothing(t)
	for want, cmd := range map[int][]string{
		0:   {"true"},
		7:   {"sh", "-c", "exit 7"},
		127: {"no-such-command"},
		126: {"/etc/passwd"},
		137: {"sh", "-c", "kill -9 $$"},
	} {
		if r := banger(t, append([]string{"vm", "run", "--rm", "--"}, cmd...)...); r.Code != want {
			t.Errorf("%v: %+v, want %d", cmd, r, want)
		}
	}
}

func TestRunKeepsStreamsApart(t *testing.T) {
	leavesNothing(t)
	r := banger(t, "vm", "run", "--rm", "--", "sh", "-c", "echo out; echo err >&2")
	if r.Stdout != "out\n" || r.Stderr != "err\n" || r.Code != 0 {
		t.Errorf("%+v", r)
	}
}

func TestRunTakesALargeBinaryStdin(t *testing.T) {
	leavesNothing(t)
	const size = 100_000_000
	h := sha256.New()
	if _, err := io.CopyN(h, zeros{}, size); err != nil {
		t.Fatal(err)
	}
	c := command(t, t.Context(), "vm", "run", "--rm", "--", "sha256sum")
	var out, errs bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = io.LimitReader(zeros{}, size), &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &errs)
	}
	if want := fmt.Sprintf("%x  -\n", h.Sum(nil)); out.String() != want {
		t.Errorf("got %q, want %q", &out, want)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestOutputIsBinarySafe(t *testing.T) {
	vm := running(t)
	all := make([]byte, 256*256)
	for i := range all {
		all[i] = byte(i)
	}
	r := bangerIn(t, all, "vm", "exec", vm.Name, "--", "cat")
	if r.Code != 0 || r.Stdout != string(all) || r.Stderr != "" {
		t.Errorf("exit %d, %d bytes, stderr %q", r.Code, len(r.Stdout), r.Stderr)
	}
}

func TestExecOptions(t *testing.T) {
	vm := running(t)
	for want, args := range map[string][]string{
		"a b\n":            {"-e", "X=a b", vm.Name, "--", "sh", "-c", `echo "$X"`},
		"/usr/bin\n":       {"-w", "/usr/bin", vm.Name, "--", "pwd"},
		"$HOME 'x' \"\\\n": {vm.Name, "--", "echo", `$HOME 'x' "\`},
		vm.Name + "\n":     {vm.Name, "--", "hostname"},
		"not a tty\n":      {"-T", vm.Name, "--", "tty"},
	} {
		r := banger(t, append([]string{"vm", "exec"}, args...)...)
		if r.Stdout != want {
			t.Errorf("%v: %+v, want %q", args, r, want)
		}
	}
	if r := banger(t, "vm", "exec", "-t", vm.Name, "--", "tty"); !strings.HasPrefix(r.Stdout, "/dev/pts/") {
		t.Errorf("no terminal with -t: %+v", r)
	}
}

func TestInterruptEndsTheCommandAndRemovesTheVM(t *testing.T) {
	leavesNothing(t)
	for _, when := range []string{"running", "starting"} {
		t.Run(when, func(t *testing.T) {
			name := "int-" + when
			c := command(t, t.Context(), "vm", "run", "--rm", "--name", name, "--", "sh", "-c", "echo up; exec sleep 1000")
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			if when == "running" {
				if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
					t.Fatal(err)
				}
			} else {
				eventually(t, 10*time.Second, func() error {
					if r := banger(t, "vm", "show", "--json", name); !strings.Contains(r.Stdout, `"starting"`) {
						return fmt.Errorf("it is not starting: %+v", r)
					}
					return nil
				})
			}
			if err := c.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			_ = c.Wait() // its code is what counts
			if code := c.ProcessState.ExitCode(); code != 130 {
				t.Errorf("exit %d, want 130", code)
			}
			if r := banger(t, "vm", "show", name); r.Code == 0 {
				t.Errorf("the VM is still there: %s", r.Stdout)
			}
		})
	}
}

func TestJailOfARunningVM(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	pid := mainPID(t, vm.Unit)
	s := status(t, pid)
	uid := strings.Fields(s["Uid"])[0]
	if want := strconv.Itoa(host.Owner(t).UIDBase + vm.Slot); uid != want || uid == strconv.Itoa(host.Owner(t).UID) {
		t.Errorf("uid %s, want %s", uid, want)
	}
	for _, set := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
		if strings.Trim(s[set], "0") != "" {
			t.Errorf("%s %s", set, s[set])
		}
	}
	if s["NoNewPrivs"] != "1" || s["Seccomp"] != "2" || s["Groups"] != "" {
		t.Errorf("NoNewPrivs %s, Seccomp %s, Groups %q", s["NoNewPrivs"], s["Seccomp"], s["Groups"])
	}
	for _, ns := range []string{"net", "pid", "mnt"} {
		own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil {
			t.Fatal(err)
		}
		if host, _ := os.Readlink("/proc/1/ns/" + ns); own == host {
			t.Errorf("shares the host's %s namespace", ns)
		}
	}
	for line := range strings.Lines(read(t, fmt.Sprintf("/proc/%d/net/dev", pid))) {
		if name, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) != "lo" {
			t.Errorf("network device %q in its namespace", strings.TrimSpace(name))
		}
	}
	if cg := read(t, fmt.Sprintf("/proc/%d/cgroup", pid)); cg != "0::/banger.slice/"+vm.Unit {
		t.Errorf("cgroup %q", cg)
	}
	t.Logf("firecracker: uid %s, CapEff %s, CapBnd %s, NoNewPrivs %s, Seccomp %s", uid, s["CapEff"], s["CapBnd"], s["NoNewPrivs"], s["Seccomp"])
	wantCaps(t, "bangerd.service", 0)
	// CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, NET_ADMIN 12, SYS_ADMIN 21, MKNOD 27
	wantCaps(t, "banger-helper.service", 1<<0|1<<1|1<<3|1<<12|1<<21|1<<27)
}

// wantCaps checks the capability bounding set of a service.
func wantCaps(t *testing.T, unit string, want uint64) {
	t.Helper()
	pid := mainPID(t, unit)
	got, err := strconv.ParseUint(status(t, pid)["CapBnd"], 16, 64)
	if err != nil || got != want {
		t.Errorf("%s has capabilities %x, want %x (%v)", unit, got, want, err)
	}
}

func TestKilledFirecrackerIsToldAndLeavesNothing(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	best := time.Hour
	for range 3 { // the lab is emulated and shares its CPUs: the best of three counts
		if err := syscall.Kill(mainPID(t, vm.Unit), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// The unit is the last to go. To look for all the rest takes the lab's only
		// CPU longer than it takes to go, so that is done once, afterwards.
		killed := time.Now()
		cgroup := "/sys/fs/cgroup/banger.slice/" + vm.Unit
		eventually(t, 10*time.Second, func() error {
			if _, err := os.Stat(cgroup); err == nil {
				return fmt.Errorf("%s is there", cgroup)
			}
			return nil
		})
		gone := time.Since(killed)
		wantGone(t, vm.ID, 5*time.Second) // systemd forgets the unit a little later
		// To ask takes a CLI's start: what counts is when bangerd knew, and its
		// answer comes at once.
		if v := show(t, vm.Name); v.State != api.StateFailed || !strings.Contains(v.Reason, "KILL") {
			t.Errorf("state %s, reason %q", v.State, v.Reason)
		}
		best = min(best, gone)
		must(t, "vm", "start", vm.Name)
	}
	t.Logf("all gone %s after SIGKILL", best)
	if best > time.Second {
		t.Errorf("it took %s", best)
	}
	must(t, "vm", "exec", vm.Name, "--", "true")
}

func TestServicesMayRestartUnderAVM(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	boot := must(t, "vm", "exec", vm.Name, "--", "cat", "/proc/sys/kernel/random/boot_id")
	said := stays(t, vm.Name)
	for _, what := range []string{"restart bangerd", "restart banger-helper", "restart bangerd banger-helper", "daemon-reexec"} {
		root(t, append([]string{"systemctl"}, strings.Fields(what)...)...)
		if now := must(t, "vm", "exec", vm.Name, "--", "cat", "/proc/sys/kernel/random/boot_id"); now != boot {
			t.Errorf("after %s: boot id %q, was %q", what, now, boot)
		}
		said(what)
	}
	wantNotProbed(t, vm.ID)
	// Without the journal of the consoles Firecracker would stand still at the
	// guest's next word there.
	root(t, "systemctl", "kill", "--signal=KILL", "systemd-journald@banger.service")
	must(t, "vm", "exec", vm.Name, "--", "timeout", "30", "sh", "-c", "echo it goes on >/dev/console")
	eventually(t, 15*time.Second, func() error {
		if said := must(t, "vm", "logs", vm.Name); !strings.Contains(said, "it goes on") {
			return fmt.Errorf("the console ends with %q", said[max(0, len(said)-200):])
		}
		return nil
	})
	if v := show(t, vm.Name); v.State != api.StateRunning {
		t.Errorf("state %s", v.State)
	}
	must(t, "vm", "restart", vm.Name) // by services and a systemd that were not there when it began
}

// stays opens a session and returns what asks for an echo through it.
func stays(t *testing.T, name string) func(word string) {
	t.Helper()
	c := host.Session(t, "vm", "exec", name, "--", "cat")
	in, inErr := c.StdinPipe()
	out, outErr := c.StdoutPipe()
	if err := errors.Join(inErr, outErr, c.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = c.Wait() })
	lines := bufio.NewReader(out)
	return func(word string) {
		t.Helper()
		if _, err := io.WriteString(in, word+"\n"); err != nil {
			t.Fatalf("after %s the session is closed: %v", word, err)
		}
		if got, err := lines.ReadString('\n'); got != word+"\n" {
			t.Fatalf("after %s the session says %q, %v", word, got, err)
		}
	}
}

// wantNotProbed wants udev not to have read the disks of a VM, which a guest has
// written, not even if the helper that made their loop devices is gone.
func wantNotProbed(t *testing.T, id string) {
	t.Helper()
	root(t, "udevadm", "trigger", "--action=change", "--subsystem-match=block")
	root(t, "udevadm", "settle")
	disks := 0
	for _, file := range host.Glob(t, "/sys/class/block/loop*/loop/backing_file") {
		backing, err := os.ReadFile(file) // other loops may go in this moment
		if err != nil || !strings.Contains(string(backing), id) && !strings.Contains(string(backing), "rootfs.ext4") {
			continue
		}
		disks++
		name := filepath.Base(filepath.Dir(filepath.Dir(file)))
		if said := root(t, "udevadm", "info", "--query=property", "--name="+name); strings.Contains(said, "ID_FS_TYPE") {
			t.Errorf("%s, of %s: udev says\n%s", name, backing, said)
		}
	}
	if disks < 2 {
		t.Errorf("%d loop devices seen", disks)
	}
}

func TestStopKeepsWhatWasWritten(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	must(t, "vm", "exec", vm.Name, "--", "sh", "-c", "echo kept > /var/kept")
	must(t, "vm", "stop", vm.Name)
	if v := show(t, vm.Name); v.State != api.StateStopped {
		t.Fatalf("state %s: %s", v.State, v.Reason)
	}
	wantGone(t, vm.ID, 15*time.Second)
	must(t, "vm", "start", vm.Name)
	if got := must(t, "vm", "exec", vm.Name, "--", "cat", "/var/kept"); got != "kept\n" {
		t.Errorf("got %q", got)
	}
	wantWholeTiming(t, show(t, vm.Name).Timing)
}

// wantWholeTiming wants the phases to be the whole, but for 2 %.
func wantWholeTiming(t *testing.T, phases []api.PhaseTime) {
	t.Helper()
	var sum, total float64
	for _, p := range phases {
		if p.Phase == api.PhaseTotal {
			total = p.Milliseconds
		} else {
			sum += p.Milliseconds
		}
	}
	if len(phases) != 20 || total == 0 || sum > total || sum < 0.98*total {
		t.Errorf("%d phases of %.1f ms, %.1f ms in all: %+v", len(phases)-1, sum, total, phases)
	}
}

func TestSystemdComesUpBehindTheAgent(t *testing.T) {
	vm := running(t)
	if vm.Guest == nil || !strings.Contains(vm.Guest.Init, "systemd") && !strings.Contains(vm.Guest.Init, "init") {
		t.Fatalf("guest %+v", vm.Guest)
	}
	isUp(t, vm.Name)
}

// isUp returns when the guest's systemd has started all it wants to. Before
// systemd answers, its own --wait does not wait.
func isUp(t *testing.T, name string) {
	t.Helper()
	eventually(t, 90*time.Second, func() error {
		r := banger(t, "vm", "exec", name, "--", "timeout", "60", "systemctl", "is-system-running", "--wait")
		if got := strings.TrimSpace(r.Stdout); got != "running" && got != "degraded" {
			return fmt.Errorf("systemd says %q %s", got, r.Stderr)
		}
		return nil
	})
}

func TestDownDaemonGivesAHint(t *testing.T) {
	root(t, "systemctl", "stop", "bangerd.socket", "bangerd.service")
	r := banger(t, "vm", "list")
	root(t, "systemctl", "start", "bangerd.socket")
	if r.Code == 0 || !strings.Contains(r.Stderr, "hint:") {
		t.Errorf("%+v", r)
	}
	// The socket is there before the daemon: a command waits for it.
	if r := banger(t, "vm", "list"); r.Code != 0 {
		t.Errorf("with a starting daemon: %+v", r)
	}
}

func TestBadInputIsRefusedAndLeavesNothing(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	dir := openDir(t)
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte(strings.Repeat("this is no kernel and no tar\n", 1000)), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, args := range map[string][]string{
		"image \"nope\"":     {"vm", "run", "--rm", "--image", "nope", "--", "true"},
		"kernel \"nope\"":    {"vm", "run", "--rm", "--kernel", "nope", "--", "true"},
		"cannot be a name":   {"vm", "run", "--rm", "--name", "Upper", "--", "true"},
		"is taken":           {"vm", "run", "--name", vm.Name, "--", "true"},
		"at least 1":         {"vm", "run", "--rm", "--vcpu", "0", "--", "true"},
		"33 vCPU":            {"vm", "run", "--rm", "--vcpu", "33", "--", "true"},
		"of memory are":      {"vm", "run", "--rm", "--memory", "8M", "--", "true"},
		"tar":                {"image", "import", "bad", bad},
		"no such file":       {"image", "import", "bad", filepath.Join(dir, "absent")},
		"neither":            {"kernel", "import", "bad", "--from", bad},
		"there is no VM":     {"vm", "exec", "nope", "--", "true"},
		"there is no image":  {"image", "delete", "nope"},
		"there is no kernel": {"kernel", "delete", "nope"},
		"it is running":      {"vm", "delete", vm.Name},
		"VMs are made from":  {"image", "delete", vm.Image},
	} {
		r := banger(t, args...)
		if r.Code == 0 || !strings.Contains(r.Stderr, what) || !strings.HasPrefix(r.Stderr, "banger: ") {
			t.Errorf("%v: exit %d, stderr %q; want %q", args, r.Code, r.Stderr, what)
		}
		if strings.HasPrefix(what, "image \"") && r.Code != 125 {
			t.Errorf("vm run: exit %d for banger's own failure, want 125", r.Code)
		}
	}
	if out := must(t, "image", "list"); strings.Contains(out, "bad") {
		t.Errorf("an image was left:\n%s", out)
	}
	if out := must(t, "kernel", "list"); strings.Contains(out, "bad") {
		t.Errorf("a kernel was left:\n%s", out)
	}
	if out := must(t, "vm", "list", "--json"); strings.Count(out, `"id"`) != 1 {
		t.Errorf("a VM was left:\n%s", out)
	}
}

// openDir is a temporary directory that the owner may enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir
}
