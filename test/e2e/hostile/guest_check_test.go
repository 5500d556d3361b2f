//go:build e2e && hostile

package hostile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/test/host"
)

// check is a check of a disk that goes on until it is ended.
type check struct {
	vm    api.VM
	unit  string
	start *exec.Cmd
	said  *bytes.Buffer
	ended chan struct{}
}

// beginCheck starts a VM, whose disk keeps e2fsck, and returns when that is at it.
func beginCheck(t *testing.T, v api.VM) *check {
	t.Helper()
	c := &check{vm: v, unit: "banger-fsck-" + v.ID + ".service", said: new(bytes.Buffer), ended: make(chan struct{}),
		start: host.Session(t, "vm", "start", v.Name)}
	c.start.Stdout, c.start.Stderr = c.said, c.said
	if err := c.start.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = c.start.Wait(); close(c.ended) }()
	t.Cleanup(func() {
		_ = c.start.Process.Kill()
		<-c.ended
	})
	host.Eventually(t, 2*time.Minute, func() error {
		select {
		case <-c.ended:
			t.Fatalf("the start is over: %s", c.said)
		default:
		}
		// The root disk is checked first, by a unit of the same name.
		argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.pid()))
		if err != nil || !bytes.HasPrefix(argv, []byte("e2fsck\x00")) || !bytes.Contains(argv, []byte("/disk/work")) {
			return fmt.Errorf("e2fsck is not at work: %q, %w", argv, err)
		}
		return nil
	})
	return c
}

func (c *check) pid() int {
	raw, err := os.ReadFile("/sys/fs/cgroup/banger.slice/" + c.unit + "/cgroup.procs")
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	return pid
}

func (c *check) cgroup(t *testing.T, file string) string {
	t.Helper()
	return host.Read(t, "/sys/fs/cgroup/banger.slice/"+c.unit+"/"+file)
}

// end waits for the start's own, and returns what it said.
func (c *check) end(t *testing.T, within time.Duration) string {
	t.Helper()
	select {
	case <-c.ended:
	case <-time.After(within):
		t.Fatalf("the start does not end within %s\n%s", within, host.Standing())
	}
	return c.said.String()
}

// endless makes a filesystem that wants e2fsck to wait 36 hours, for another host
// that may have it mounted.
func endless(t *testing.T, file string) {
	t.Helper()
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, craftedSize)); err != nil {
		t.Fatal(err)
	}
	host.Root(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(craftedBlock), "-O", "^metadata_csum,^64bit,^flex_bg,^uninit_bg,mmp", file)
	f := openExt4(t, file)
	f.put16(f.super+sbMMPInterval, 0xffff)
	f.close(t)
}

// limited gives checks other limits until the test ends.
func limited(t *testing.T, settings string) {
	t.Helper()
	const file = "/run/systemd/system/banger-fsck-.service.d/90-hostile.conf"
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
		host.Root(t, "systemctl", "daemon-reload")
	})
	if err := errors.Join(os.MkdirAll("/run/systemd/system/banger-fsck-.service.d", 0o755), os.WriteFile(file, []byte("[Service]\n"+settings+"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	host.Root(t, "systemctl", "daemon-reload")
}

// tireless makes a filesystem on which e2fsck counts for longer than anybody waits,
// and heeds no SIGTERM meanwhile.
func tireless(t *testing.T, file string) {
	t.Helper()
	host.Root(t, "cp", "--sparse=always", mkfs(t), file)
	f := openExt4(t, file)
	f.put16(f.super+0x3a, 2)
	indirectLoop(f)
	f.close(t)
}

// A filesystem on which e2fsck works for ever costs its own VM's start: the limits are
// there while it does, other VMs answer, whoever gives up takes it with him, and when
// its time is over it ends. One for which it would sleep is refused.
func TestCheckThatNeverEnds(t *testing.T) {
	host.ImportTiny(t, "endless-tiny")
	t.Cleanup(func() { host.Banger(t, "image", "delete", "endless-tiny") })
	other := normal(t)
	inventory := host.Inventory(t)
	victim := stoppedWithDisk(t, "endless", "endless-tiny")
	calm := watchServices(t)
	replaceDisk(t, victim, func(file string) { endless(t, file) })
	if r := host.Banger(t, "vm", "start", victim.Name); r.Code == 0 || !strings.Contains(r.Stderr, "several hosts (mmp)") {
		t.Errorf("a disk for several hosts: %+v", r)
	}
	replaceDisk(t, victim, func(file string) { tireless(t, file) })
	interrupted(t, victim, other)
	timedOut(t, victim)
	host.Must(t, "vm", "delete", victim.Name)
	calm(t)
	host.Eventually(t, 20*time.Second, func() error { return differs("left behind", inventory, host.Inventory(t)) })
}

func interrupted(t *testing.T, victim, other api.VM) {
	t.Helper()
	c := beginCheck(t, victim)
	for file, want := range map[string]string{"memory.max": "1073741824", "memory.swap.max": "0", "pids.max": "16"} {
		if got := c.cgroup(t, file); got != want {
			t.Errorf("%s of a check is %s, want %s", file, got, want)
		}
	}
	if got := strings.TrimSpace(host.Root(t, "systemctl", "show", "--property=TimeoutStartUSec", "--value", c.unit)); got != "30min" {
		t.Errorf("a check may take %s", got)
	}
	if got, most := exposureOf(t, c.unit), exposure["banger-fsck"]; got > most {
		t.Errorf("%s is at %.1f, was at %.1f", c.unit, got, most)
	}
	if s := host.Status(t, c.pid()); s["Seccomp"] != "2" || s["CapEff"] != "0000000000000000" || s["NoNewPrivs"] != "1" {
		t.Errorf("e2fsck has seccomp %s, capabilities %s, no_new_privs %s", s["Seccomp"], s["CapEff"], s["NoNewPrivs"])
	}
	answers(t, "while e2fsck does not end", other)
	begun := time.Now()
	if err := c.start.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	said := c.end(t, 2*time.Minute)
	t.Logf("interrupted, it ended after %s: %s", time.Since(begun).Round(100*time.Millisecond), strings.TrimSpace(said))
	host.WantGone(t, victim.ID, 30*time.Second)
}

// timedOut shows that systemd ends a check when its time is over. That is half an
// hour; a setting of an administrator stands above it.
func timedOut(t *testing.T, victim api.VM) {
	t.Helper()
	limited(t, "TimeoutStartSec=20")
	begun := time.Now()
	r := host.Banger(t, "vm", "start", victim.Name)
	t.Logf("20 s are over after %s: exit %d: %s", time.Since(begun).Round(100*time.Millisecond), r.Code, strings.TrimSpace(r.Stderr))
	if r.Code == 0 || !strings.Contains(r.Stderr, "timeout") || !strings.Contains(r.Stderr, "e2fsck was ended") {
		t.Errorf("exit %d, it does not say that its time was over", r.Code)
	}
	if v := showVM(t, victim.Name); v.State != api.StateFailed {
		t.Errorf("it is %s", v.State)
	}
	host.WantGone(t, victim.ID, 30*time.Second)
}

// Who wants to be rid of a VM whose disk keeps e2fsck need not wait: the start is
// cancelled, its check with it, and the delete is next.
func TestDeleteDuringACheck(t *testing.T) {
	host.ImportTiny(t, "delete-tiny")
	t.Cleanup(func() { host.Banger(t, "image", "delete", "delete-tiny") })
	victim := stoppedWithDisk(t, "doomed", "delete-tiny")
	replaceDisk(t, victim, func(file string) { tireless(t, file) })
	c := beginCheck(t, victim)
	begun := time.Now()
	r := host.Banger(t, "vm", "delete", "--force", victim.Name)
	t.Logf("deleted after %s: exit %d: %s", time.Since(begun).Round(100*time.Millisecond), r.Code, strings.TrimSpace(r.Stderr))
	if r.Code != 0 {
		t.Errorf("it is not deleted: %+v", r)
	}
	if took := time.Since(begun); took > 2*time.Minute {
		t.Errorf("it waited %s for the start", took)
	}
	if said := c.end(t, time.Minute); !strings.Contains(said, "killed or deleted meanwhile") {
		t.Errorf("the start says %s", said)
	}
	host.WantGone(t, victim.ID, 30*time.Second)
}

// hungry makes a filesystem whose 4480 groups say that they hold nothing but
// directories, 134 million of them. e2fsck makes room for all at once: more than
// a check has.
func hungry(t *testing.T, file string) {
	t.Helper()
	const size, perGroup, inodes = 160 << 30, 8192, 30000
	const groups = size / craftedBlock / perGroup
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
	// uninit_bg, so that nobody writes the tables; afterwards it would be in the way.
	host.Root(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(craftedBlock), "-I", "128", "-g", strconv.Itoa(perGroup), "-N", strconv.Itoa(groups*inodes),
		"-O", "^metadata_csum,uninit_bg,^has_journal,^resize_inode,^64bit,^flex_bg", "-E", "nodiscard,lazy_itable_init=1", file)
	f := openExt4(t, file)
	f.put32(f.super+sbROCompat, f.get32(f.super+sbROCompat)&^0x10)
	raw := f.get(f.group(0), groups*32)
	for g := range groups {
		binary.LittleEndian.PutUint16(raw[32*g+16:], inodes) // directories
		binary.LittleEndian.PutUint16(raw[32*g+18:], 0)      // flags
	}
	f.put(f.group(0), raw)
	f.put16(f.super+0x3a, 2)
	f.close(t)
}

// e2fsck that takes more memory than a check has is ended, and nobody else.
func TestCheckThatEatsMemory(t *testing.T) {
	host.ImportTiny(t, "hungry-tiny")
	t.Cleanup(func() { host.Banger(t, "image", "delete", "hungry-tiny") })
	victim := stoppedWithDisk(t, "hungry", "hungry-tiny")
	other := normal(t)
	inventory := host.Inventory(t)
	calm := watchServices(t)
	replaceDisk(t, victim, func(file string) { hungry(t, file) })
	kills := oomKills(t)
	done := make(chan host.Result, 1)
	go func() { done <- host.Banger(t, "vm", "start", victim.Name) }()
	answers(t, "while e2fsck eats", other)
	r := <-done
	t.Logf("exit %d: %s", r.Code, strings.TrimSpace(r.Stderr))
	if r.Code == 0 || !strings.Contains(r.Stderr, "oom-kill") || !strings.Contains(r.Stderr, "e2fsck was ended") {
		t.Errorf("exit %d, it does not say that it took too much memory", r.Code)
	}
	if now := oomKills(t); now != kills+1 {
		t.Errorf("%d processes of this host were killed for lack of memory", now-kills)
	}
	answers(t, "after it", other)
	host.WantGone(t, victim.ID, 30*time.Second)
	host.Must(t, "vm", "delete", victim.Name)
	calm(t)
	host.Eventually(t, 20*time.Second, func() error { return differs("left behind", inventory, host.Inventory(t)) })
}

// oomKills counts the processes that the host's kernel killed for lack of memory.
func oomKills(t *testing.T) int {
	t.Helper()
	for line := range strings.Lines(host.Read(t, "/proc/vmstat")) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			kills, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil {
				t.Fatal(err)
			}
			return kills
		}
	}
	t.Fatal("the kernel tells no oom_kill")
	return 0
}
