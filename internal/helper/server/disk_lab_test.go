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
