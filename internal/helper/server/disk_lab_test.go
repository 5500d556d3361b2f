//go:build lab

package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/helper"
	"banger/internal/installed"
	"banger/internal/paths"
)

func (l *life) withWork() helper.AttachRequest {
	return helper.AttachRequest{ID: l.id, Base: l.dir + "/base", Overlay: l.dir + "/overlay", Work: l.dir + "/work"}
}

func (l *life) attachWork() helper.Attached {
	l.t.Helper()
	out, err := l.c.Attach(l.t.Context(), l.withWork())
	l.must(err)
	if out.Work == nil || out.Work.Name != "fc-work-"+l.id || out.Root.Name != "fc-rootfs-"+l.id {
		l.t.Fatalf("attached %+v", out)
	}
	return out
}

func (l *life) resize(name string, size int64) {
	l.t.Helper()
	l.must(os.Truncate(filepath.Join(paths.StateDir, l.dir, name), size))
}

func (l *life) run(name string, args ...string) string {
	l.t.Helper()
	out, err := exec.CommandContext(l.t.Context(), name, args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// The whole life of a VM with two disks, the second of which grows.
func TestLabWorkDisk(t *testing.T) {
	l := newLife(t)
	l.file("work", 32<<20, nil)
	l.file("other", 32<<20, nil)
	first := l.attachWork()
	if again := l.attachWork(); *again.Work != *first.Work || again.Root != first.Root || again.Work.Bytes != 32<<20 {
		t.Errorf("%+v, again %+v", first.Work, again.Work)
	}
	for name, work := range map[string]string{"another": l.dir + "/other", "none": ""} {
		r := l.withWork()
		r.Work = work
		if _, err := l.c.Attach(t.Context(), r); code(err) != helper.CodeBusy {
			t.Errorf("%s: %v", name, err)
		}
	}
	l.launch()
	for _, d := range disksOf(l.id) {
		var st unix.Stat_t
		l.must(unix.Lstat(l.root+d.jailPath, &st))
		have, err := d.find(l.dm())
		l.must(err)
		if st.Mode != unix.S_IFBLK|0o600 || int(st.Uid) != l.slot.UID || int(st.Gid) != l.slot.UID || st.Rdev != have.dev {
			t.Errorf("%s: %+v", d.jailPath, st)
		}
	}
	l.configure()
	if err := l.c.Handover(t.Context(), l.id); code(err) != api.CodeConflict {
		t.Errorf("handover without the second drive: %v", err)
	}
	l.must(l.fc.AddDrive(t.Context(), firecracker.Drive{ID: "work", Path: paths.JailWork, Cache: "Writeback"}))
	l.must(l.c.Handover(t.Context(), l.id))
	if os.Getenv("BANGER_LAB_KERNEL") != "" {
		l.must(l.fc.SetBoot(t.Context(), firecracker.Boot{Kernel: paths.JailKernel, Args: "console=ttyS0 reboot=k panic=-1"}))
		l.timed("start", func() error { return l.fc.Start(t.Context()) })
	}
	l.resize("work", 96<<20)
	l.timed("vm.grow", func() error {
		d, err := l.c.Grow(t.Context(), l.id)
		if d.Bytes != 96<<20 {
			t.Errorf("%+v", d)
		}
		return err
	})
	if os.Getenv("BANGER_LAB_KERNEL") != "" {
		l.patchWork()
	}
	if got := l.left(); !slices.Contains(got, "work<nil>") {
		t.Errorf("the disk went: %q", got)
	}
	l.must(syscall.Kill(l.pid, syscall.SIGKILL))
	l.gone(sudden)
}

// patchWork lets Firecracker open its drive anew, as after a growth.
func (l *life) patchWork() {
	l.t.Helper()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.root+paths.JailAPI)
	}}}
	defer c.CloseIdleConnections()
	r, err := http.NewRequestWithContext(l.t.Context(), http.MethodPatch, "http://fc/drives/work",
		strings.NewReader(`{"drive_id":"work","path_on_host":"`+paths.JailWork+`"}`))
	l.must(err)
	answer, err := c.Do(r)
	l.must(err)
	defer answer.Body.Close()
	if said, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != http.StatusNoContent {
		l.t.Errorf("patch: %s %s, %v", answer.Status, said, err)
	}
}

func TestLabAttachLeavesNothing(t *testing.T) {
	l := newLife(t)
	l.file("work", 32<<20, nil)
	dm := l.dm()
	l.must(dm.create(workDisk(l.id).name(), "LVM-not-ours"))
	if _, err := l.c.Attach(t.Context(), l.withWork()); code(err) != helper.CodeBusy {
		t.Errorf("%v", err)
	}
	if _, err := dm.status(rootDisk(l.id).name()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the root disk was left: %v", err)
	}
	l.must(dm.remove(workDisk(l.id).name()))
	l.gone(sudden)
	// What was there before stays.
	l.attach()
	l.must(dm.create(workDisk(l.id).name(), "LVM-not-ours"))
	if _, err := l.c.Attach(t.Context(), l.withWork()); code(err) != helper.CodeBusy {
		t.Errorf("%v", err)
	}
	if _, err := dm.status(rootDisk(l.id).name()); err != nil {
		t.Errorf("the root disk went: %v", err)
	}
	l.must(dm.remove(workDisk(l.id).name()))
}

// The kernel takes three times a chunk of memory for a snapshot, and believes the
// overlay's header what that is.
func TestLabForgedOverlayIsRefused(t *testing.T) {
	l := newLife(t)
	head := binary.LittleEndian.AppendUint32(nil, snapMagic)
	for _, word := range []uint32{1, 1, 1 << 21} {
		head = binary.LittleEndian.AppendUint32(head, word)
	}
	l.file("overlay", 65<<20, head)
	if _, err := l.c.Attach(t.Context(), helper.AttachRequest{ID: l.id, Base: l.dir + "/base", Overlay: l.dir + "/overlay"}); code(err) != helper.CodeDamaged {
		t.Errorf("%v", err)
	}
	l.gone(sudden)
}

// A writer has the disk open and never stops while it grows; what it was told
// is on the disk is there.
func TestLabGrowUnderAWriter(t *testing.T) {
	l := newLife(t)
	const start, step, rounds = int64(16 << 20), int64(8 << 20), 8
	l.file("work", start, nil)
	if _, err := l.c.Grow(t.Context(), l.id); code(err) != api.CodeConflict {
		t.Errorf("without a disk: %v", err)
	}
	l.attachWork()
	if d, err := l.c.Grow(t.Context(), l.id); err != nil || d.Bytes != start {
		t.Errorf("nothing to grow: %+v, %v", d, err)
	}
	node := l.nodeOf(workDisk(l.id))
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	l.must(err)
	defer f.Close()
	l.must(l.dm().remove(workDisk(l.id).name())) // as after vm.handover

	stop, failed := make(chan struct{}), make(chan error, 1)
	block := func(n int64) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%015d\n", n)), 4096/16) }
	var written int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; ; written++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := f.WriteAt(block(written), written%(start/4096)*4096); err != nil {
				failed <- err
				return
			}
			if err := f.Sync(); err != nil {
				failed <- err
				return
			}
		}
	})
	for n := range int64(rounds) {
		size := start + (n+1)*step
		l.resize("work", size)
		l.timed("vm.grow", func() error {
			d, err := l.c.Grow(t.Context(), l.id)
			if d.Bytes != size {
				t.Errorf("%+v, want %d", d, size)
			}
			return err
		})
		if got, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKGETSIZE64); err != nil || int64(got) != size {
			t.Errorf("the holder sees %d, want %d: %v", got, size, err)
		}
		if _, err := f.WriteAt(block(n), size-4096); err != nil {
			t.Errorf("the new end: %v", err)
		}
	}
	close(stop)
	wg.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	t.Logf("%d blocks written meanwhile", written)
	l.resize("work", start)
	if _, err := l.c.Grow(t.Context(), l.id); code(err) != api.CodeBadRequest {
		t.Errorf("smaller: %v", err)
	}
	l.resize("work", start+rounds*step+512)
	if _, err := l.c.Grow(t.Context(), l.id); code(err) != api.CodeBadRequest {
		t.Errorf("odd size: %v", err)
	}
	have, err := workDisk(l.id).find(l.dm())
	if err != nil || have.targets[0].sectors*512 != uint64(start+rounds*step) {
		t.Errorf("%+v, %v", have, err)
	}
	l.must(f.Close())
	// The file alone, without the devices.
	raw, err := os.ReadFile(filepath.Join(paths.StateDir, l.dir, "work"))
	l.must(err)
	for n := max(0, written-start/4096); n < written; n++ {
		if at := n % (start / 4096) * 4096; !bytes.Equal(raw[at:at+4096], block(n)) {
			t.Fatalf("block %d was lost", n)
		}
	}
	l.must(l.c.Cleanup(t.Context(), l.id))
	l.gone(sudden)
}

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

// asVictim makes the test binary, started again, do what the helper does with a
// VM's disks, over and over, until it is killed.
const asVictim = "BANGER_TEST_VICTIM"

func beVictim(request string) error {
	var r helper.AttachRequest
	if err := json.Unmarshal([]byte(request), &r); err != nil {
		return err
	}
	record, err := installed.Load(paths.InstallFile)
	if err != nil {
		return err
	}
	s, err := New(record, InstalledPlaces())
	if err != nil {
		return err
	}
	ctx := context.Background()
	for size := int64(16 << 20); ; size += 1 << 20 {
		if _, err := s.attach(ctx, r); err != nil {
			return err
		}
		if err := os.Truncate(filepath.Join(paths.StateDir, r.Work), size); err != nil {
			return err
		}
		if _, err := s.grow(ctx, helper.GrowRequest{ID: r.ID}); err != nil {
			return err
		}
		if _, err := s.fsck(ctx, helper.FsckRequest{ID: r.ID, Disk: "work"}); err != nil {
			return err
		}
		if _, err := s.cleanup(ctx, helper.VMRequest{ID: r.ID}); err != nil {
			return err
		}
	}
}

// kill -9 at random moments of attach, grow, fsck and cleanup: vm.cleanup
// leaves nothing, and nothing is suspended for ever.
func TestLabKilledAnywhere(t *testing.T) {
	rounds := 15
	if v, err := strconv.Atoi(os.Getenv("BANGER_LAB_KILLS")); err == nil {
		rounds = v
	}
	l := newLife(t)
	work := filepath.Join(paths.StateDir, l.dir, "work")
	request, err := json.Marshal(l.withWork())
	l.must(err)
	met := map[string]int{}
	for range rounds {
		l.file("work", 16<<20, nil)
		l.run("mke2fs", "-q", "-F", "-t", "ext4", work)
		victim := exec.CommandContext(t.Context(), "/proc/self/exe")
		victim.Env = append(os.Environ(), asVictim+"="+string(request))
		var said bytes.Buffer
		victim.Stdout, victim.Stderr = &said, &said
		l.must(victim.Start())
		time.Sleep(50*time.Millisecond + rand.N(1200*time.Millisecond)) // the random moment
		l.must(victim.Process.Kill())
		if err := victim.Wait(); err == nil || said.Len() > 0 {
			t.Errorf("victim: %v, %s", err, &said)
		}
		for _, what := range l.left() {
			met[strings.TrimRight(what, "0123456789")]++
		}
		l.must(l.c.Cleanup(t.Context(), l.id))
		l.gone(sudden)
	}
	t.Logf("found before the clean-up: %v", met)
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
