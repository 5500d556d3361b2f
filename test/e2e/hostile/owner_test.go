//go:build e2e && hostile

package hostile

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/jsonhttp"
	"banger/internal/paths"
	"banger/test/host"
)

// What the two processes of this test tell each other.
const (
	ownerRole   = "HOSTILE_OWNER"    // set in the process that attacks
	ownerVM     = "HOSTILE_VM"       // the id of a VM that runs
	ownerSent   = "requests sent: "  // and the number of those that got to the helper
	ownerPrefix = "hostile-"         // of their operation ids
	ownerDir    = "vms/" + ownerA    // in the state directory
	foreignDir  = "/var/lib/foreign" // things of somebody else
	ownerLeast  = 500                // requests that an attack has: one that did not happen harms nobody
)

// The ids that the attacker has; the last two name things of somebody else.
const (
	ownerA       = "a00000000001"
	ownerB       = "a00000000002"
	ownerUnknown = "a0000000dead"
	ownerForeign = "a000000000f1" // fc-rootfs-ID is a device of somebody else
	ownerDummy   = "a000000000f2" // tapID is
)

// TestHostileOwner has a process of the owner's uid call every verb of the
// helper with every kind of wrong argument, fast, slowly, and ten thousand times
// at once, while root looks on.
func TestHostileOwner(t *testing.T) {
	host.ImportTiny(t, "owner-tiny")
	t.Cleanup(func() { host.Banger(t, "image", "delete", "owner-tiny") })
	t.Cleanup(func() { host.Banger(t, "vm", "delete", "--force", "bystander") })
	host.Must(t, "vm", "run", "-d", "--name", "bystander", "--image", "owner-tiny", "--memory", "128M")
	vm := showVM(t, "bystander")
	t.Cleanup(func() { // when the things of others are gone
		for _, id := range []string{ownerForeign, ownerDummy} {
			if err := helper.NewClient(paths.HelperSocket).Release(context.WithoutCancel(t.Context()), id); err != nil {
				t.Error(err)
			}
		}
	})
	plantForeign(t)
	files := plantOwners(t)
	host.Banger(t, "doctor") // the helper is there, and has done what it does once
	slots, before, things, inventory := host.Slots(t), foreignFiles(t), kernelThings(t), host.Inventory(t)
	used := usage(t, "banger-helper.service")
	daemon := usage(t, "bangerd.service")
	cursor := journalCursor(t)

	watch := startWatch(t, "bystander", vm.ID)
	sent := attack(t, vm.ID)
	watch.end(t)

	host.Eventually(t, 20*time.Second, func() error {
		now := host.Slots(t)
		delete(now, ownerForeign)
		delete(now, ownerDummy)
		return errors.Join(differs("slots", slots, now), differs("left behind", inventory, host.Inventory(t)))
	})
	host.Eventually(t, 20*time.Second, func() error { return differences(things, kernelThings(t)) })
	if err := differences(before, foreignFiles(t)); err != nil {
		t.Errorf("files of others: %v", err)
	}
	if err := os.RemoveAll(files); err != nil {
		t.Error(err)
	}
	used.wantBack(t, "banger-helper.service")
	daemon.wantBack(t, "bangerd.service")
	if logged := loggedSince(t, cursor); logged != sent || sent < ownerLeast {
		t.Errorf("%d requests, %d lines in the log", sent, logged)
	}
	host.Must(t, "vm", "run", "--rm", "--image", "owner-tiny", "--", "true") // all of it still works
}

func showVM(t *testing.T, name string) api.VM {
	t.Helper()
	return decode[api.VM](t, host.Must(t, "vm", "show", "--json", name))
}

// attack runs this test program once more, as the owner, and returns how many
// requests it sent.
func attack(t *testing.T, vm string) (sent int) {
	t.Helper()
	owner := host.Owner(t)
	program := copySelf(t)
	c := exec.CommandContext(t.Context(), program, "-test.run=^TestOwnerProcess$", "-test.v", "-test.timeout=10m")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(owner.UID), Gid: uint32(owner.GID)}}
	c.Env, c.Dir = []string{ownerRole + "=1", ownerVM + "=" + vm, "PATH=/usr/bin:/bin"}, "/"
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(out); s.Scan(); {
		t.Log(s.Text())
		if _, n, ok := strings.Cut(s.Text(), ownerSent); ok {
			sent, _ = strconv.Atoi(n)
		}
	}
	if err := c.Wait(); err != nil {
		t.Errorf("the hostile owner: %v", err)
	}
	return sent
}

// copySelf is this program where the owner may run it.
func copySelf(t *testing.T) string {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	dir, err := os.MkdirTemp("/var/tmp", "hostile-") //nolint:usetesting // t.TempDir is root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "hostile.test")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, self); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), os.Chmod(path, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// watch looks on: root asks the helper, and somebody types in the VM.
type watch struct {
	stop          context.CancelFunc
	tasks         sync.WaitGroup
	mu            sync.Mutex
	asked, typed  int
	slowest, lull time.Duration
	peak          int
	errs          []error
}

const patience = 15 * time.Second // an emulated host is slow

func startWatch(t *testing.T, name, id string) *watch {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watch{stop: cancel}
	w.tasks.Go(func() { w.ask(ctx, t, id) })
	session := host.Session(t, "vm", "exec", "-T", name, "--", "cat")
	in, err := session.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start(); err != nil {
		t.Fatal(err)
	}
	w.tasks.Go(func() {
		w.typeAway(ctx, in, bufio.NewReader(out))
		_ = in.Close()
		if err := session.Wait(); err != nil {
			w.failed(fmt.Errorf("the session in the VM: %w", err))
		}
	})
	return w
}

func (w *watch) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errs) < 5 {
		w.errs = append(w.errs, err)
	}
}

// ask is root, whom the owner's connections must not lock out.
func (w *watch) ask(ctx context.Context, t *testing.T, id string) {
	client := helper.NewClient(paths.HelperSocket)
	pid := host.PID("banger-helper.service")
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		begun := time.Now()
		call, cancel := context.WithTimeout(ctx, patience)
		_, err := client.Reserve(call, id)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			w.failed(fmt.Errorf("root was not served after %s: %w", time.Since(begun), err))
		}
		w.mu.Lock()
		w.asked++
		w.slowest = max(w.slowest, time.Since(begun))
		w.peak = max(w.peak, len(host.Glob(t, fmt.Sprintf("/proc/%d/fd/*", pid))))
		w.mu.Unlock()
	}
}

func (w *watch) typeAway(ctx context.Context, in io.Writer, out *bufio.Reader) {
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		begun := time.Now()
		line := strconv.Itoa(w.typed) + "\n"
		if _, err := io.WriteString(in, line); err != nil {
			w.failed(fmt.Errorf("typing in the VM: %w", err))
			return
		}
		if got, err := out.ReadString('\n'); err != nil || got != line {
			w.failed(fmt.Errorf("the VM says %q, %w", got, err))
			return
		}
		w.typed++
		w.lull = max(w.lull, time.Since(begun))
	}
}

func (w *watch) end(t *testing.T) {
	t.Helper()
	w.stop()
	w.tasks.Wait()
	t.Logf("root asked %d times, slowest %s; %d lines typed in the VM, slowest %s; the helper had at most %d descriptors",
		w.asked, w.slowest.Round(time.Millisecond), w.typed, w.lull.Round(time.Millisecond), w.peak)
	if err := errors.Join(w.errs...); err != nil {
		t.Error(err)
	}
	if w.asked == 0 || w.typed == 0 || w.lull > patience {
		t.Errorf("who looked on was held up")
	}
	if w.peak > 512 {
		t.Errorf("the helper had %d descriptors at a time", w.peak)
	}
}

// used is what a service has of the host.
type used struct{ pid, rss, descriptors, threads int }

func usage(t *testing.T, unit string) used {
	t.Helper()
	return usageOf(t, host.MainPID(t, unit))
}

func usageOf(t *testing.T, pid int) used {
	t.Helper()
	s := host.Status(t, pid)
	number := func(field string) int {
		n, err := strconv.Atoi(strings.TrimSuffix(s[field], " kB"))
		if err != nil {
			t.Fatalf("process %d: %s %q", pid, field, s[field])
		}
		return n
	}
	return used{pid, number("VmRSS"), len(host.Glob(t, fmt.Sprintf("/proc/%d/fd/*", pid))), number("Threads")}
}

// wantBack waits until a service is as small as it was. What thousands of
// connections took is given back two collections later, and an idle program
// collects every other minute.
func (before used) wantBack(t *testing.T, unit string) {
	t.Helper()
	var now used
	host.Eventually(t, 5*time.Minute, func() error {
		if now = usageOf(t, before.pid); now.descriptors > before.descriptors+8 || now.rss > before.rss+24<<10 || now.threads > before.threads+16 {
			return fmt.Errorf("%s was %+v, is %+v", unit, before, now)
		}
		return nil
	})
	if pid := host.MainPID(t, unit); pid != before.pid {
		t.Errorf("%s ended meanwhile", unit)
	}
	t.Logf("%s: %d → %d KiB, %d → %d descriptors, %d → %d threads", unit, before.rss, now.rss, before.descriptors, now.descriptors, before.threads, now.threads)
}

func journalCursor(t *testing.T) string {
	t.Helper()
	out := host.Root(t, "journalctl", "--lines=0", "--show-cursor", "--quiet")
	_, cursor, ok := strings.Cut(out, "-- cursor: ")
	if !ok {
		t.Fatalf("journalctl says %q", out)
	}
	return strings.TrimSpace(cursor)
}

var operation = regexp.MustCompile(` op=` + ownerPrefix + `[0-9]+ `)

// loggedSince counts the lines about requests of the attacker.
func loggedSince(t *testing.T, cursor string) int {
	t.Helper()
	out := host.Root(t, "journalctl", "--unit=banger-helper.service", "--after-cursor="+cursor, "--output=cat", "--quiet")
	return len(operation.FindAllString(out, -1))
}

func differs[T any](what string, before, after T) error {
	if b, a := fmt.Sprint(before), fmt.Sprint(after); a != b {
		return fmt.Errorf("%s: before %.2000s, now %.2000s", what, b, a)
	}
	return nil
}

// differences tells which lines are not in both.
func differences(before, after []string) error {
	var errs []error
	for _, line := range before {
		if !slices.Contains(after, line) {
			errs = append(errs, errors.New("was: "+line))
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			errs = append(errs, errors.New("is: "+line))
		}
	}
	return errors.Join(errs[:min(len(errs), 20)]...)
}

// unixClient has one connection for each request.
func unixClient(socket string) *http.Client {
	c := jsonhttp.NewHTTPClient(func(ctx context.Context) (net.Conn, error) { return dialUnix(ctx, socket) })
	c.Timeout = time.Minute
	return c
}

// dialUnix waits where the socket's queue is full, which Go does not.
func dialUnix(ctx context.Context, socket string) (net.Conn, error) {
	for {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if !errors.Is(err, syscall.EAGAIN) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func lines(b []byte) []string { return strings.Split(string(bytes.TrimSpace(b)), "\n") }
