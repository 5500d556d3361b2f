//go:build lab

package server

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/installed"
	"banger/internal/paths"
)

func TestLabAttachRefusesAnotherDisk(t *testing.T) {
	l := newLife(t)
	l.attach()
	l.file("other", 65<<20, nil)
	for _, r := range []helper.AttachRequest{
		{ID: l.id, Base: l.dir + "/base", Overlay: l.dir + "/other"},
		{ID: l.id, Base: l.dir + "/other", Overlay: l.dir + "/overlay"},
	} {
		if _, err := l.c.Attach(t.Context(), r); code(err) != helper.CodeBusy {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if _, err := l.c.Attach(t.Context(), helper.AttachRequest{ID: l.id, Base: l.dir + "/base", Overlay: l.dir + "/base"}); code(err) != api.CodeBadRequest {
		t.Errorf("base as overlay: %v", err)
	}
	if _, err := l.c.Attach(t.Context(), helper.AttachRequest{ID: "000000000000", Base: l.dir + "/base", Overlay: l.dir + "/overlay"}); code(err) != api.CodeNotFound {
		t.Errorf("without a slot: %v", err)
	}
	l.must(l.c.Cleanup(t.Context(), l.id))
	l.gone(sudden)
}

func (l *life) dm() *dmControl {
	l.t.Helper()
	dm, err := openDM()
	l.must(err)
	l.t.Cleanup(func() { l.must(dm.Close()) })
	return dm
}

func (l *life) nodeOf(d disk) string {
	l.t.Helper()
	have, err := d.find(l.dm())
	l.must(err)
	return "/dev/dm-" + strconv.Itoa(int(unix.Minor(have.dev)))
}

func (l *life) node() *os.File {
	l.t.Helper()
	f, err := os.OpenFile(l.nodeOf(rootDisk(l.id)), os.O_RDWR, 0)
	l.must(err)
	return f
}

// A suspended device would outlive everything: its holder cannot end.
func TestLabCleanupResumes(t *testing.T) {
	l := newLife(t)
	l.attach()
	dm := l.dm()
	_, _, err := dm.ioctl(unix.DM_DEV_SUSPEND, dmMessage{name: rootDisk(l.id).name(), flags: unix.DM_SUSPEND_FLAG})
	l.must(err)
	if st, err := dm.status(rootDisk(l.id).name()); err != nil || !st.suspended {
		t.Fatalf("%+v, %v", st, err)
	}
	l.timed("vm.cleanup", func() error { return l.c.Cleanup(t.Context(), l.id) })
	l.gone(sudden)
}

// A disk that is still open goes when its holder does, and cleanup waits.
func TestLabCleanupWaitsForTheLastHolder(t *testing.T) {
	l := newLife(t)
	l.attach()
	f := l.node()
	done := make(chan error, 1)
	go func() { done <- l.c.Cleanup(t.Context(), l.id) }()
	select {
	case err := <-done:
		t.Fatalf("cleanup did not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	l.must(f.Close())
	l.must(<-done)
	l.gone(sudden)
}

// What the snapshot holds is in the overlay, and the base stays as it was.
func TestLabDiskWritesGoToTheOverlay(t *testing.T) {
	l := newLife(t)
	l.attach()
	word := []byte(strings.Repeat("banger! ", 512))
	f := l.node()
	_, err := f.WriteAt(word, 1<<20)
	l.must(errors.Join(err, f.Sync(), f.Close()))
	l.must(l.c.Cleanup(t.Context(), l.id))
	base, err := os.Open(filepath.Join(paths.StateDir, l.dir, "base"))
	l.must(err)
	got := make([]byte, len(word))
	_, err = base.ReadAt(got, 1<<20)
	l.must(errors.Join(err, base.Close()))
	if strings.Trim(string(got), "\x00") != "" {
		t.Error("the base was written to")
	}
	l.attach()
	f = l.node()
	_, err = f.ReadAt(got, 1<<20)
	l.must(errors.Join(err, f.Close()))
	if string(got) != string(word) {
		t.Error("the overlay did not keep what was written")
	}
}

func TestLabForeignDeviceStays(t *testing.T) {
	l := newLife(t)
	dm := l.dm()
	l.must(dm.create(rootDisk(l.id).name(), "LVM-not-ours"))
	if err := l.c.Cleanup(t.Context(), l.id); err == nil {
		t.Error("cleanup says it is gone")
	}
	if _, err := dm.status(rootDisk(l.id).name()); err != nil {
		t.Errorf("it is gone: %v", err)
	}
	l.must(dm.remove(rootDisk(l.id).name()))
}

// Nothing below a mount is deleted.
func TestLabMountInJailIsKept(t *testing.T) {
	l := newLife(t)
	jail := filepath.Join(paths.JailDir, l.id)
	mounted := filepath.Join(jail, "root/mnt")
	treasure := t.TempDir()
	l.must(os.WriteFile(filepath.Join(treasure, "file"), []byte("keep"), 0o600))
	l.must(os.MkdirAll(mounted, 0o755))
	l.must(unix.Mount(treasure, mounted, "", unix.MS_BIND, ""))
	unmounted := false
	defer func() {
		if !unmounted {
			l.must(unix.Unmount(mounted, 0))
		}
	}()
	if err := l.c.Cleanup(t.Context(), l.id); code(err) != api.CodeConflict {
		t.Errorf("the helper: %v", err)
	}
	// The second guard by itself, as if the mount came after the first.
	parent, err := os.Open(paths.JailDir)
	l.must(err)
	defer parent.Close()
	if err := removeTree(parent, l.id); err == nil {
		t.Error("removeTree went through a mount")
	}
	if raw, err := os.ReadFile(filepath.Join(treasure, "file")); err != nil || string(raw) != "keep" {
		t.Errorf("%q, %v", raw, err)
	}
	l.must(unix.Unmount(mounted, 0))
	unmounted = true
	l.must(l.c.Cleanup(t.Context(), l.id))
	l.gone(sudden)
}

func TestLabExistingJailIsRefusedAndKept(t *testing.T) {
	l := newLife(t)
	l.attach()
	mark := filepath.Join(paths.JailDir, l.id, "mark")
	l.must(os.Mkdir(filepath.Dir(mark), 0o711))
	l.must(os.WriteFile(mark, nil, 0o600))
	if _, err := l.c.Launch(t.Context(), l.launchRequest()); code(err) != api.CodeConflict {
		t.Errorf("launch: %v", err)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Error(err)
	}
}

// What the owner mounted below the state directory is not looked into: with FUSE he
// needs no rights for that, and can answer when he likes; this one never answers. What
// only an administrator can have mounted there is fine.
func TestLabFUSEBelowTheStateIsRefused(t *testing.T) {
	l := newLife(t)
	here, err := New(l.record, InstalledPlaces())
	l.must(err)
	mounted := filepath.Join(paths.StateDir, l.dir, "mnt")
	l.must(os.Mkdir(mounted, 0o700))
	l.must(unix.Mount(filepath.Join(paths.StateDir, l.dir), mounted, "", unix.MS_BIND, ""))
	r := helper.BlobPutRequest{Path: l.dir + "/mnt/kernel"}
	_, err = here.putBlob(t.Context(), r)
	l.must(errors.Join(err, unix.Unmount(mounted, 0)))

	if out, err := exec.CommandContext(t.Context(), "modprobe", "fuse").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	l.must(err)
	defer server.Close()
	l.must(unix.Mount("silent", mounted, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", server.Fd())))
	defer func() { l.must(unix.Unmount(mounted, unix.MNT_DETACH)) }()
	done := make(chan error, 1)
	go func() {
		_, err := here.putBlob(t.Context(), r)
		done <- err
	}()
	select {
	case err := <-done:
		if code(err) != api.CodeBadRequest || !strings.Contains(err.Error(), "FUSE") {
			t.Errorf("got %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the helper waits for the owner's filesystem")
	}
	r.Path = l.dir + "/kernel" // by the way that is not behind it
	if _, err := here.putBlob(t.Context(), r); err != nil {
		t.Error(err)
	}
}

// A VMM that does not come up is told with its end, and nothing is left.
func TestLabEndedEarly(t *testing.T) {
	l := newLife(t)
	l.attach()
	record := l.record
	record.Jailer = "/usr/bin/false"
	s, err := New(record, InstalledPlaces())
	l.must(err)
	start := time.Now()
	_, err = s.launch(t.Context(), l.launchRequest())
	t.Logf("%v after %s", err, time.Since(start))
	if code(err) != helper.CodeVMMEnded {
		t.Errorf("launch: %v", err)
	}
	if e, err := readExit(s.places, l.id); err != nil || e.ExitCode != "" || e.Result != "exit-code" {
		t.Errorf("record %+v, %v", e, err)
	}
	l.gone(sudden)
	if len(s.netns) != 0 {
		t.Error("a namespace is held")
	}
}

// Where a jail could not work, a launch says so.
func TestLabMountsThatTakeNoJail(t *testing.T) {
	for option, flags := range map[string]uintptr{"": 0, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "ro": unix.MS_RDONLY} {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		p := Places{Jails: dir + "/jail", Blobs: dir + "/blob"}
		err := errors.Join(os.Mkdir(p.Jails, 0o700), os.Mkdir(p.Blobs, 0o700), unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""))
		got := p.checkMount()
		apart := Places{Jails: p.Jails, Blobs: filepath.Dir(dir)}.checkMount()
		if err := errors.Join(err, unix.Unmount(dir, 0)); err != nil {
			t.Fatal(err)
		}
		if (got == nil) != (option == "") || got != nil && !strings.HasSuffix(got.Error(), " mounted "+option) {
			t.Errorf("%q: %v", option, got)
		}
		if apart == nil || !strings.Contains(apart.Error(), "different mounts") {
			t.Errorf("two filesystems: %v", apart)
		}
	}
}

// A Firecracker that is not static finds the host's libraries in its jail: ls, in
// its place, gets as far as to refuse Firecracker's options, which its status tells.
func TestLabDynamicVMM(t *testing.T) {
	l := newLife(t)
	l.attach()
	dir, err := os.MkdirTemp("/usr/local/libexec", "test-") //nolint:usetesting // not below /tmp: each parent has to be root's alone
	l.must(err)
	defer os.RemoveAll(dir)
	l.must(os.Chmod(dir, 0o755))
	raw, err := os.ReadFile("/usr/bin/ls")
	l.must(err)
	record := l.record
	record.Firecracker = filepath.Join(dir, "firecracker")
	l.must(errors.Join(os.WriteFile(record.Firecracker, raw, 0o755), os.Chmod(record.Firecracker, 0o755)))
	s, err := New(record, InstalledPlaces())
	l.must(err)
	if needs, err := s.vmmLibraries(); err != nil || len(needs) == 0 {
		t.Errorf("it needs %q, %v", needs, err)
	}
	_, err = s.launch(t.Context(), l.launchRequest())
	t.Log(err)
	if code(err) != helper.CodeVMMEnded {
		t.Errorf("launch: %v", err)
	}
	if e, err := readExit(s.places, l.id); err != nil || e.ExitCode != "exited" || e.Status != "2" {
		t.Errorf("record %+v, %v", e, err)
	}
	l.gone(sudden) // its mounts, too
	if out, err := exec.Command("/usr/bin/ls", "/usr/lib").Output(); err != nil || len(out) == 0 {
		t.Errorf("the host's libraries: %q, %v", out, err)
	}
	s.record = l.record
	if needs, err := s.vmmLibraries(); err != nil || len(needs) > 0 {
		t.Errorf("the installed one needs %q, %v", needs, err)
	}
}

func TestLabProgramsMustBeRoots(t *testing.T) {
	record, err := installed.Load(paths.InstallFile)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/usr/local/libexec", "test-") //nolint:usetesting // not below /tmp: each parent has to be root's alone
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	raw, err := os.ReadFile(record.Jailer)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "jailer")
	for _, tt := range []struct {
		name            string
		dirMode, mode   os.FileMode
		dirUID, fileUID int
		ok              bool
	}{
		{"fine", 0o755, 0o755, 0, 0, true},
		{"group can write", 0o755, 0o775, 0, 0, false},
		{"all can write to the directory", 0o777, 0o755, 0, 0, false},
		{"owner's file", 0o755, 0o755, 0, record.UID, false},
		{"owner's directory", 0o755, 0o755, record.UID, 0, false},
	} {
		if err := errors.Join(os.WriteFile(program, raw, 0o755), os.Chmod(program, tt.mode), os.Chmod(dir, tt.dirMode),
			os.Chown(program, tt.fileUID, 0), os.Chown(dir, tt.dirUID, 0)); err != nil {
			t.Fatal(err)
		}
		f, err := openTrusted(program)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err == nil {
			f.Close()
		}
	}
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Chown(dir, 0, 0), os.Symlink(record.Jailer, link)); err != nil {
		t.Fatal(err)
	}
	if _, err := openTrusted(link); err == nil {
		t.Error("a symlink is trusted")
	}
}

func TestLabNetNSIsEmptyAndLeavesNoThread(t *testing.T) {
	before := threadNamespaces(t)
	for range 20 {
		ns, err := newNetNS(0)
		if err != nil {
			t.Fatal(err)
		}
		host, err := os.Stat("/proc/1/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		info, err := ns.Stat()
		if err != nil || os.SameFile(info, host) {
			t.Fatalf("not a namespace of its own: %v", err)
		}
		if err := ns.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := threadNamespaces(t); after != before {
		t.Errorf("threads are in %s, before in %s", after, before)
	}
}

// threadNamespaces names the network namespaces of this process's threads.
func threadNamespaces(t *testing.T) string {
	t.Helper()
	links, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil { // a thread may end
			seen[ns] = true
		}
	}
	return fmt.Sprint(seen)
}

// The helper stays small, however many VMs come and go. BANGER_LAB_LIVES sets
// another number than 20.
func TestLabMemory(t *testing.T) {
	lives := 20
	if v, err := strconv.Atoi(os.Getenv("BANGER_LAB_LIVES")); err == nil {
		lives = v
	}
	l := newLife(t)
	for n := 1; n <= lives; n++ {
		for _, f := range []func() error{
			func() error {
				_, err := l.c.Attach(t.Context(), helper.AttachRequest{ID: l.id, Base: l.dir + "/base", Overlay: l.dir + "/overlay"})
				return err
			},
			func() error { _, err := l.c.Launch(t.Context(), l.launchRequest()); return err },
			func() error { return l.c.Kill(t.Context(), l.id) },
			func() error { return l.c.Cleanup(t.Context(), l.id) },
		} {
			l.must(f())
		}
		if n%20 == 0 || n == lives {
			rss, fds := helperSize(t)
			t.Logf("after %3d VMs: %d KiB, %d descriptors", n, rss, fds)
			if rss > 15<<10 || fds > 12 {
				t.Fatal("the helper grows")
			}
		}
	}
}

func helperSize(t *testing.T) (rssKiB, fds int) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, exe := range found {
		if target, err := os.Readlink(exe); err != nil || target != paths.LibexecDir+"/banger-helper" {
			continue
		}
		dir := filepath.Dir(exe)
		raw, err := os.ReadFile(dir + "/status")
		if errors.Is(err, syscall.ESRCH) || errors.Is(err, os.ErrNotExist) {
			continue // a cleanup that just ended
		}
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(raw), "VmRSS:")
		if _, err := fmt.Sscan(rest, &rssKiB); err != nil {
			t.Fatal(err)
		}
		open, err := os.ReadDir(dir + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		return rssKiB, len(open)
	}
	t.Fatal("the helper does not run")
	return 0, 0
}
