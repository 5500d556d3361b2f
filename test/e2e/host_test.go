//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/installed"
	"banger/internal/paths"
)

// What banger may leave in a host, counted the way the kernel tells it.

// inventory lists every kernel object and file of VMs by name.
func inventory(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, dm := range glob(t, "/sys/class/block/dm-*/dm/name") {
		raw, err := os.ReadFile(dm) // it may go in this moment
		if name := strings.TrimSpace(string(raw)); err == nil && strings.HasPrefix(name, "fc-") {
			all = append(all, "dm "+name)
		}
	}
	for _, loop := range glob(t, "/sys/class/block/loop*/loop/backing_file") {
		raw, err := os.ReadFile(loop)
		if file := strings.TrimSpace(string(raw)); err == nil && strings.Contains(file, "banger") {
			all = append(all, "loop "+file)
		}
	}
	for _, unit := range glob(t, "/sys/fs/cgroup/banger.slice/banger-vm-*") {
		all = append(all, "cgroup "+filepath.Base(unit))
	}
	for _, unit := range glob(t, "/run/systemd/transient/banger-*") {
		all = append(all, "transient "+filepath.Base(unit))
	}
	for _, jail := range glob(t, paths.JailDir+"/*") {
		all = append(all, "jail "+filepath.Base(jail))
	}
	for line := range strings.Lines(read(t, "/proc/1/mountinfo")) {
		if strings.Contains(line, "banger") {
			all = append(all, "mount "+strings.TrimSpace(line))
		}
	}
	for _, exe := range glob(t, "/proc/[0-9]*/comm") {
		raw, err := os.ReadFile(exe) // it may end in this moment
		if comm := strings.TrimSpace(string(raw)); err == nil && (comm == "firecracker" || comm == "jailer") {
			all = append(all, comm+" "+filepath.Base(filepath.Dir(exe)))
		}
	}
	slices.Sort(all)
	return all
}

// descriptors counts what bangerd and the helper have open.
func descriptors(t testing.TB) int {
	t.Helper()
	n := 0
	for _, unit := range []string{"bangerd.service", "banger-helper.service"} {
		if pid := mainPID(t, unit); pid != 0 { // the helper may have left
			n += len(glob(t, fmt.Sprintf("/proc/%d/fd/*", pid)))
		}
	}
	return n
}

// vmFiles lists the directories of VMs.
func vmFiles(t testing.TB) []string { return glob(t, paths.StateDir+"/vms/*") }

// wantGone waits until nothing of the inventory names one of the VM's things.
func wantGone(t testing.TB, id string, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		var left []string
		for _, thing := range inventory(t) {
			if strings.Contains(thing, id) {
				left = append(left, thing)
			}
		}
		if left != nil {
			return fmt.Errorf("left behind: %q", left)
		}
		return nil
	})
}

// eventually retries check until it holds or the time is over.
func eventually(t testing.TB, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	m, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func read(t testing.TB, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

// status returns the fields of /proc/PID/status.
func status(t testing.TB, pid int) map[string]string {
	t.Helper()
	fields := map[string]string{}
	s := bufio.NewScanner(strings.NewReader(read(t, fmt.Sprintf("/proc/%d/status", pid))))
	for s.Scan() {
		k, v, _ := strings.Cut(s.Text(), ":")
		fields[k] = strings.TrimSpace(v)
	}
	return fields
}

// mainPID asks systemd for the main process of a unit.
func mainPID(t testing.TB, unit string) int {
	t.Helper()
	out := root(t, "systemctl", "show", "--property=MainPID", "--value", unit)
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatalf("systemctl says %q", out)
	}
	return pid
}

// root runs a command of the host that must succeed.
func root(t testing.TB, argv ...string) string {
	t.Helper()
	// Clean-ups run commands too, when the test's context has ended.
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

// result is how a banger command ended.
type result struct {
	code           int
	stdout, stderr string
}

var owner = func() installed.Record {
	r, err := installed.Load(paths.InstallFile)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e tests run as root on a host where banger is installed:", err)
		os.Exit(1)
	}
	return r
}()

// command is banger as its owner types it.
func command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "/usr/local/bin/banger", args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true,
		Credential: &syscall.Credential{Uid: uint32(owner.UID), Gid: uint32(owner.GID)}}
	c.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "USER=" + owner.Owner, "LANG=C.UTF-8"}
	c.Dir = "/"
	return c
}

// banger runs a command to its end.
func banger(t testing.TB, args ...string) result { return bangerIn(t, nil, args...) }

func bangerIn(t testing.TB, stdin []byte, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	c := command(context.WithoutCancel(t.Context()), args...) // clean-ups run it too
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(stdin), &out, &errs
	err := c.Run()
	if c.ProcessState == nil {
		t.Fatalf("banger %v: %v", args, err)
	}
	return result{c.ProcessState.ExitCode(), out.String(), errs.String()}
}

// must runs a command that has to succeed and returns its stdout.
func must(t testing.TB, args ...string) string {
	t.Helper()
	r := banger(t, args...)
	if r.code != 0 {
		t.Fatalf("banger %v: exit %d\n%s%s", args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}
