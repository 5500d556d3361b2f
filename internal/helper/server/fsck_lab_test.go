//go:build lab

package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/paths"
)

func (l *life) fsck(role string, repair bool) (helper.Checked, error) {
	l.t.Helper()
	start := time.Now()
	out, err := l.c.Fsck(l.t.Context(), helper.FsckRequest{ID: l.id, Disk: role, Repair: repair})
	l.t.Logf("vm.fsck %s %v: %.0f ms, %+v, %v", role, repair, float64(time.Since(start).Microseconds())/1000, out, err)
	if _, statErr := os.Lstat(filepath.Join(paths.JailDir, l.id)); statErr == nil {
		l.t.Error("the jail was left")
	}
	if p, phaseErr := labChecks.phase(l.t.Context(), l.id); phaseErr != nil || p != unitGone {
		l.t.Errorf("the unit is %v, %v", p, phaseErr)
	}
	return out, err
}

const shutdownIoctl, shutdownLogFlush = 0x8004587d, 1

func TestLabFsck(t *testing.T) {
	l := newLife(t)
	l.file("work", 64<<20, nil)
	l.attachWork()
	if _, err := l.fsck("root", false); code(err) != helper.CodeDamaged {
		t.Errorf("no filesystem at all: %v", err)
	}
	nodes := map[string]string{"root": l.nodeOf(rootDisk(l.id)), "work": l.nodeOf(workDisk(l.id))}
	for role, node := range nodes {
		l.run("mke2fs", "-q", "-t", "ext4", node)
		if out, err := l.fsck(role, false); err != nil || out.Status != 0 || !strings.Contains(out.Output, "clean") {
			t.Errorf("clean: %+v, %v", out, err)
		}
	}
	node := nodes["work"]

	// As after the death of a VM: a journal that is to be replayed.
	mnt := t.TempDir()
	l.run("mount", "-t", "ext4", node, mnt)
	for n := range 200 {
		l.must(os.WriteFile(filepath.Join(mnt, strconv.Itoa(n)), []byte(strings.Repeat("x", n)), 0o644))
	}
	l.run("sync", "-f", mnt)
	dir, err := os.Open(mnt)
	l.must(err)
	l.must(unix.IoctlSetPointerInt(int(dir.Fd()), shutdownIoctl, shutdownLogFlush))
	l.must(dir.Close())
	l.run("umount", mnt)
	if out, err := l.fsck("work", false); err != nil || !strings.Contains(out.Output, "recovering journal") {
		t.Errorf("dirty: %+v, %v", out, err)
	}
	if out, err := l.fsck("work", false); err != nil || out.Status != 0 {
		t.Errorf("after recovery: %+v, %v", out, err)
	}
	l.run("mount", "-t", "ext4", node, mnt)
	if raw, err := os.ReadFile(filepath.Join(mnt, "150")); err != nil || len(raw) != 150 {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
	l.run("umount", mnt)

	// Something preen mends by itself, and something it does not.
	l.run("debugfs", "-w", "-R", "set_super_value free_blocks_count 7", node)
	l.run("debugfs", "-w", "-R", "set_super_value state 2", node)
	if out, err := l.fsck("work", false); err != nil || out.Status != 1 {
		t.Errorf("mended: %+v, %v", out, err)
	}
	l.run("debugfs", "-w", "-R", "clri /100", node)
	l.run("debugfs", "-w", "-R", "clri <2>", node)
	l.run("debugfs", "-w", "-R", "set_super_value state 2", node)
	if _, err := l.fsck("work", false); code(err) != helper.CodeDamaged {
		t.Errorf("damaged: %v", err)
	}
	if out, err := l.fsck("work", true); err != nil || out.Status != 1 {
		t.Errorf("repaired: %+v, %v", out, err)
	}
	if out, err := l.fsck("work", false); err != nil || out.Status != 0 {
		t.Errorf("after repair: %+v, %v", out, err)
	}
	l.must(l.c.Cleanup(t.Context(), l.id))
	l.gone(sudden)
}

// Whatever lies on the disk, what comes of it is an answer, and nothing is left.
func TestLabFsckOfGarbage(t *testing.T) {
	l := newLife(t)
	l.attach()
	node := l.nodeOf(rootDisk(l.id))
	dice := rand.New(rand.NewPCG(4, 2))
	for range 12 {
		l.run("mke2fs", "-q", "-F", "-t", "ext4", node)
		f, err := os.OpenFile(node, os.O_RDWR, 0)
		l.must(err)
		for range 400 { // superblock, descriptors, bitmaps, inode tables
			_, err := f.WriteAt([]byte{byte(dice.Uint32())}, 1024+dice.Int64N(1<<20))
			l.must(err)
		}
		_, err = f.WriteAt([]byte{0x53, 0xef}, 1024+56) // still ext4
		l.must(errors.Join(err, f.Sync(), f.Close()))
		if out, err := l.fsck("root", true); err == nil && out.Status > 1 {
			t.Errorf("%+v", out)
		}
	}
	l.must(l.c.Cleanup(t.Context(), l.id))
	l.gone(sudden)
}

// slowCheck puts a filesystem on the root disk on which e2fsck counts for longer than
// any test takes, and returns when it is at it: a file's one block is also all of its
// indirect blocks.
func (l *life) slowCheck(ctx context.Context) (pid int, done chan error) {
	l.t.Helper()
	const block = 4096
	node := l.nodeOf(rootDisk(l.id))
	l.run("mke2fs", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(block), "-O", "^metadata_csum,^64bit,^extent,^has_journal", node)
	l.run("debugfs", "-w", "-R", "write /etc/debian_version one", node)
	raw, err := exec.CommandContext(l.t.Context(), "debugfs", "-R", "blocks one", node).Output()
	l.must(err)
	where, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 32)
	l.must(err)
	for _, set := range []string{"sif one block[IND] ", "sif one block[DIND] ", "sif one block[TIND] "} {
		l.run("debugfs", "-w", "-R", set+strconv.FormatUint(where, 10), node)
	}
	l.run("debugfs", "-w", "-R", "sif one size 0x3ff00000000", node)
	l.run("debugfs", "-w", "-R", "ssv state 2", node) // it has errors
	disk, err := os.OpenFile(node, os.O_RDWR, 0)
	l.must(err)
	_, err = disk.WriteAt(bytes.Repeat(binary.LittleEndian.AppendUint32(nil, uint32(where)), block/4), int64(where)*block)
	l.must(errors.Join(err, disk.Sync(), disk.Close()))
	done = make(chan error, 1)
	go func() {
		_, err := l.c.Fsck(ctx, helper.FsckRequest{ID: l.id, Disk: "root"})
		done <- err
	}()
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) { // another process's exec raises no event
		found, err := filepath.Glob("/proc/[0-9]*/comm")
		l.must(err)
		for _, path := range found {
			if raw, err := os.ReadFile(path); err == nil && string(raw) == "e2fsck\n" {
				pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				l.must(err)
				return pid, done
			}
		}
		select {
		case err := <-done:
			l.t.Fatalf("the check is over: %v", err)
		default:
		}
		if time.Since(start) > 20*time.Second {
			l.t.Fatal("e2fsck does not run")
		}
	}
}

func TestLabFsckHasNoRights(t *testing.T) {
	l := newLife(t)
	l.attach()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pid, done := l.slowCheck(ctx)
	proc := fmt.Sprintf("/proc/%d/", pid)
	raw, err := os.ReadFile(proc + "status")
	l.must(err)
	uid := strconv.Itoa(l.slot.UID)
	all := strings.Join([]string{uid, uid, uid, uid}, "\t")
	for _, want := range []string{"Name:\te2fsck", "Uid:\t" + all, "Gid:\t" + all, "Groups:\t", "CapEff:\t0000000000000000",
		"CapPrm:\t0000000000000000", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "CapBnd:\t00000000000000c0", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(strings.ReplaceAll(string(raw), " \n", "\n"), "\n"+want+"\n") && !strings.HasPrefix(string(raw), want) {
			t.Errorf("not %q in\n%s", want, raw)
		}
	}
	for _, ns := range []string{"mnt", "net", "ipc"} {
		mine, err := os.Readlink("/proc/1/ns/" + ns)
		l.must(err)
		if theirs, err := os.Readlink(proc + "ns/" + ns); err != nil || theirs == mine {
			t.Errorf("%s namespace is the host's, %v", ns, err)
		}
	}
	raw, err = os.ReadFile(proc + "cgroup")
	l.must(err)
	if want := "0::/banger.slice/" + labChecks.name(l.id) + "\n"; string(raw) != want {
		t.Errorf("cgroup %q, want %q", raw, want)
	}
	var seen []string
	for _, dir := range []string{"", "disk", "etc", "home", "root", "run", "var/lib", "tmp"} {
		entries, err := os.ReadDir(proc + "root/" + dir)
		for _, e := range entries {
			seen = append(seen, dir+"/"+e.Name())
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	t.Logf("it sees %q", seen)
	for _, want := range []string{"/disk", "disk/rootfs", "/usr"} {
		if !slices.Contains(seen, want) {
			t.Errorf("it does not see %s", want)
		}
	}
	for _, path := range seen {
		if strings.HasPrefix(path, "etc/") || strings.HasPrefix(path, "home/") || strings.HasPrefix(path, "root/") || strings.HasPrefix(path, "var/lib/") {
			t.Errorf("it sees %s", path)
		}
	}
	// What PrivateDevices= takes over from the host, and what would outlive the check.
	entries, err := os.ReadDir(proc + "root/dev")
	l.must(err)
	for _, e := range entries {
		info, err := os.Stat(proc + "root/dev/" + e.Name())
		if err == nil && info.Mode().Perm()&0o022 != 0 && (info.IsDir() || e.Name() == "ptmx") {
			t.Errorf("it may use /dev/%s: %v", e.Name(), info.Mode())
		}
	}
	t.Logf("its devices: %q", entries)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	l.must(l.c.Cleanup(t.Context(), l.id)) // waits for the undo
	if syscall.Kill(pid, 0) == nil {
		t.Error("e2fsck goes on")
	}
	l.gone(sudden)
}

// A helper that dies leaves e2fsck at work: the VM is not launched beside it,
// and cleanup ends it.
func TestLabHelperDiesInFsck(t *testing.T) {
	l := newLife(t)
	l.attach()
	pid, done := l.slowCheck(t.Context())
	l.run("systemctl", "kill", "--signal=KILL", "banger-helper.service")
	if err := <-done; err == nil {
		t.Error("the check succeeded")
	}
	l.run("systemctl", "reset-failed", "banger-helper.service")
	l.run("systemctl", "start", "banger-helper.service")
	if syscall.Kill(pid, 0) != nil {
		t.Error("e2fsck went with the helper")
	}
	for what, f := range map[string]func() error{
		"launch": func() error { _, err := l.c.Launch(t.Context(), l.launchRequest()); return err },
		"fsck":   func() error { _, err := l.c.Fsck(t.Context(), helper.FsckRequest{ID: l.id, Disk: "root"}); return err },
	} {
		if err := f(); code(err) != api.CodeConflict {
			t.Errorf("%s beside e2fsck: %v", what, err)
		}
	}
	l.timed("vm.cleanup", func() error { return l.c.Cleanup(t.Context(), l.id) })
	l.gone(sudden)
}

// A program that does not come to its end in its time is killed, and that is told: a
// test guest may hang.
func TestLabTrialThatHangs(t *testing.T) {
	trials := &systemd{labBus, trialKind}
	const id = "hangs"
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := errors.Join(stopUnit(ctx, trials, id), trials.forget(ctx, id)); err != nil {
			t.Error(err)
		}
	})
	begun := time.Now()
	host := []bindMount{{"/usr", "/usr", false, 0}, {"/lib", "/lib", true, 0}, {"/lib64", "/lib64", true, 0}}
	v, said, err := runToEnd(t.Context(), trials, id, []string{"/usr/bin/sleep", "infinity"}, 2*time.Second,
		set("DynamicUser", true), set("BindReadOnlyPaths", host))
	t.Logf("%+v, %q after %s", v, said, time.Since(begun))
	if err != nil || v.Result != "timeout" || judgeTrial(v, said) == nil {
		t.Errorf("%+v, %q, %v", v, said, err)
	}
}
