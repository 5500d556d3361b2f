// Package host looks at a host on which banger is installed, from outside and
// as root, for tests: what the kernel, systemd and the disk hold of VMs, and
// what a banger command answers its owner.
package host

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// Inventory lists every kernel object and file of VMs by name.
func Inventory(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, dm := range Glob(t, "/sys/class/block/dm-*/dm/name") {
		raw, err := os.ReadFile(dm) // it may go in this moment
		if name := strings.TrimSpace(string(raw)); err == nil && strings.HasPrefix(name, "fc-") {
			all = append(all, "dm "+name)
		}
	}
	for _, loop := range Glob(t, "/sys/class/block/loop*/loop/backing_file") {
		raw, err := os.ReadFile(loop) // it may go in this moment
		file := strings.TrimSpace(string(raw))
		// Not by the whole path: when the helper that made the loop has gone, and
		// with it its view of the filesystem, the kernel tells the path's end only.
		if name := loopFile.FindString(file); err == nil && name != "" {
			all = append(all, "loop "+name)
		}
	}
	for _, unit := range Glob(t, "/sys/fs/cgroup/banger.slice/banger-*") {
		all = append(all, "cgroup "+filepath.Base(unit))
	}
	for _, unit := range Glob(t, "/run/systemd/transient/banger-*") {
		all = append(all, "transient "+filepath.Base(unit))
	}
	for _, jail := range Glob(t, paths.JailDir+"/*") {
		all = append(all, "jail "+filepath.Base(jail))
	}
	for line := range strings.Lines(Read(t, "/proc/1/mountinfo")) {
		if strings.Contains(line, "banger") {
			all = append(all, "mount "+strings.TrimSpace(line))
		}
	}
	for _, tap := range Glob(t, "/sys/class/net/tap*") {
		all = append(all, filepath.Base(tap))
	}
	if rules, err := exec.CommandContext(context.WithoutCancel(t.Context()), "nft", "list", "ruleset").Output(); err == nil {
		for _, name := range tapName.FindAllString(string(rules), -1) {
			all = append(all, "rule for "+name)
		}
	}
	for _, exe := range Glob(t, "/proc/[0-9]*/comm") {
		raw, err := os.ReadFile(exe) // it may end in this moment
		if comm := strings.TrimSpace(string(raw)); err == nil && (comm == "firecracker" || comm == "jailer") {
			all = append(all, comm+" "+filepath.Base(filepath.Dir(exe)))
		}
	}
	all = append(all, namespaces(t)...)
	for _, file := range slices.Concat(Glob(t, paths.HelperDir+"/.new-*"), Glob(t, paths.HelperDir+"/*/*/.new-*"),
		Glob(t, paths.HelperRunDir+"/.new-*"), Glob(t, paths.HelperRunDir+"/*/.new-*"), Glob(t, paths.HelperRunDir+"/lock/*")) {
		all = append(all, "file "+file)
	}
	slices.Sort(all)
	return all
}

// namespaces lists the network namespaces that processes of VMs are in, and
// those that the helper or systemd (for it) hold open.
func namespaces(t testing.TB) []string {
	t.Helper()
	host := link("/proc/1/ns/net")
	seen := map[string]bool{}
	for _, unit := range Glob(t, "/sys/fs/cgroup/banger.slice/banger-*") {
		for pid := range strings.FieldsSeq(procs("banger.slice/" + filepath.Base(unit))) {
			seen[link("/proc/"+pid+"/ns/net")] = true
		}
	}
	for pid := range strings.FieldsSeq("1 " + procs("system.slice/banger-helper.service")) {
		for _, fd := range Glob(t, "/proc/"+pid+"/fd/*") {
			if to := link(fd); strings.HasPrefix(to, "net:") {
				seen[to] = true
			}
		}
	}
	delete(seen, host)
	delete(seen, "")
	var all []string
	for ns := range seen {
		all = append(all, "namespace "+ns)
	}
	return all
}

// procs lists the processes of a unit by its cgroup; none if it has just gone.
func procs(cgroup string) string {
	raw, err := os.ReadFile("/sys/fs/cgroup/" + cgroup + "/cgroup.procs")
	if err != nil {
		return ""
	}
	return string(raw)
}

// PID is a unit's first process, 0 if it has none. It asks nobody, so it is quick.
func PID(unit string) int {
	slice := "system.slice/"
	if strings.HasPrefix(unit, "banger-vm-") {
		slice = "banger.slice/"
	}
	pid, err := strconv.Atoi(strings.Split(procs(slice+unit), "\n")[0])
	if err != nil {
		return 0
	}
	return pid
}

// link is what a link of /proc says, or nothing if it has just gone.
func link(path string) string {
	to, err := os.Readlink(path)
	if err != nil {
		return ""
	}
	return to
}

var loopFile = regexp.MustCompile(`(images|vms)/[0-9a-f]{12}/[a-z0-9.]+$`)

var tapName = regexp.MustCompile(`tap[0-9a-f]{12}`)

// Descriptors counts what bangerd and the helper have open.
func Descriptors(t testing.TB) int {
	t.Helper()
	n := 0
	for _, unit := range []string{"bangerd.service", "banger-helper.service"} {
		if pid := MainPID(t, unit); pid != 0 { // the helper may have left
			n += len(Glob(t, fmt.Sprintf("/proc/%d/fd/*", pid)))
		}
	}
	return n
}

// VMFiles lists the directories of VMs.
func VMFiles(t testing.TB) []string { return Glob(t, paths.StateDir+"/vms/*") }

// WantGone waits until nothing of the inventory names one of the VM's things.
func WantGone(t testing.TB, id string, within time.Duration) {
	t.Helper()
	Eventually(t, within, func() error {
		var left []string
		for _, thing := range Inventory(t) {
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

// Eventually retries check until it holds or the time is over.
func Eventually(t testing.TB, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
		<-again.C
	}
}

func Glob(t testing.TB, pattern string) []string {
	t.Helper()
	m, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func Read(t testing.TB, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

// Status returns the fields of /proc/PID/status.
func Status(t testing.TB, pid int) map[string]string {
	t.Helper()
	fields := map[string]string{}
	s := bufio.NewScanner(strings.NewReader(Read(t, fmt.Sprintf("/proc/%d/status", pid))))
	for s.Scan() {
		k, v, _ := strings.Cut(s.Text(), ":")
		fields[k] = strings.TrimSpace(v)
	}
	return fields
}

// MainPID asks systemd for the main process of a unit.
func MainPID(t testing.TB, unit string) int {
	t.Helper()
	out := Root(t, "systemctl", "show", "--property=MainPID", "--value", unit)
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatalf("systemctl says %q", out)
	}
	return pid
}

// Root runs a command of the host that must succeed.
func Root(t testing.TB, argv ...string) string {
	t.Helper()
	// Clean-ups run commands too, when the test's context has ended.
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

// Result is how a banger command ended.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// Owner is the record of the installation.
func Owner(t testing.TB) installed.Record {
	t.Helper()
	r, err := installed.Load(paths.InstallFile)
	if err != nil {
		t.Fatal("these tests run as root on a host where banger is installed: ", err)
	}
	return r
}

// commandTime bounds a command: one that never ends would hold up all the tests
// behind it, and tell nothing.
const commandTime = 4 * time.Minute

// Command is banger as its owner types it. One that does not end in commandTime
// is a failure of the test, which tells where the command and the host stood.
func Command(t testing.TB, ctx context.Context, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(ctx, commandTime, errStuck)
	t.Cleanup(cancel)
	c := ownersCommand(t, ctx, args)
	c.Cancel = func() error {
		if !errors.Is(context.Cause(ctx), errStuck) {
			return c.Process.Kill()
		}
		t.Errorf("banger %v does not end:\n%s", args, Standing())
		return c.Process.Signal(syscall.SIGABRT) // its goroutines go to its stderr
	}
	c.WaitDelay = 10 * time.Second
	return c
}

// Session is a command that lasts as long as the test wants it to.
func Session(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	return ownersCommand(t, t.Context(), args)
}

func ownersCommand(t testing.TB, ctx context.Context, args []string) *exec.Cmd {
	t.Helper()
	owner := Owner(t)
	c := exec.CommandContext(ctx, "/usr/local/bin/banger", args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true,
		Credential: &syscall.Credential{Uid: uint32(owner.UID), Gid: uint32(owner.GID)}}
	c.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "USER=" + owner.Owner, "LANG=C.UTF-8"}
	c.Dir = "/"
	return c
}

var errStuck = errors.New("the command does not end")

// Standing is what the host says of itself when something hangs.
func Standing() string {
	var b strings.Builder
	for _, argv := range [][]string{
		{"systemctl", "list-units", "--all", "--no-pager", "--plain", "--no-legend", "banger*"},
		{"/usr/local/bin/banger", "vm", "list"},
		{"ps", "-eo", "pid,etimes,stat,time,wchan:20,args", "--sort=-time"},
		{"journalctl", "--no-pager", "--lines=60", "--output=short-precise", "--unit=bangerd", "--unit=banger-helper"},
		{"journalctl", "--no-pager", "--lines=80", "--output=short-precise", "--namespace=banger"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		cancel()
		lines := strings.SplitAfter(string(out), "\n")
		fmt.Fprintf(&b, "--- %v %v\n%s", argv, err, strings.Join(lines[max(0, len(lines)-80):], ""))
	}
	return b.String()
}

// Banger runs a command to its end.
func Banger(t testing.TB, args ...string) Result { return BangerIn(t, nil, args...) }

func BangerIn(t testing.TB, stdin []byte, args ...string) Result {
	t.Helper()
	var out, errs bytes.Buffer
	c := Command(t, context.WithoutCancel(t.Context()), args...) // clean-ups run it too
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(stdin), &out, &errs
	err := c.Run()
	if c.ProcessState == nil {
		t.Fatalf("banger %v: %v", args, err)
	}
	return Result{c.ProcessState.ExitCode(), out.String(), errs.String()}
}

// Must runs a command that has to succeed and returns its stdout.
func Must(t testing.TB, args ...string) string {
	t.Helper()
	r := Banger(t, args...)
	if r.Code != 0 {
		t.Fatalf("banger %v: exit %d\n%s%s", args, r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}
