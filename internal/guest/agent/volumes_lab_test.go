//go:build lab

package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return strings.TrimSpace(string(out))
}

// disk is a loop device with an ext4 filesystem on its first 32 MiB.
func disk(t *testing.T, bytes int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	create(t, file, "", 0o600)
	if err := os.Truncate(file, bytes); err != nil {
		t.Fatal(err)
	}
	run(t, "mke2fs", "-q", "-t", "ext4", file, "32M")
	dev := run(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", dev).Run() })
	return dev
}

func mountWork(t *testing.T, tr tree, root string, m guest.Mount) {
	t.Helper()
	if err := mountVolumes(tr, []guest.Mount{m}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root+m.Path, unix.MNT_DETACH) })
}

func workMount(dev string) guest.Mount {
	return guest.Mount{Device: dev, FSType: "ext4", Path: "/root", Fill: true, Grow: true}
}

func TestWorkDiskIsFilledOnceAndGrown(t *testing.T) {
	root, _, tr := image(t)
	create(t, root+"/root/.profile", "hello\n", 0o644)
	create(t, root+"/root/bin/tool", "x", 0o755)
	if err := unix.Setxattr(root+"/root/bin/tool", "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(root+"/root/bin/tool", 1234, 4321); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(root+"/root/bin/tool", "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root+"/root", 0o700); err != nil {
		t.Fatal(err)
	}
	dev := disk(t, 256<<20)
	m := workMount(dev)
	mountWork(t, tr, root, m)

	var st unix.Stat_t
	if err := unix.Stat(root+"/root/bin/tool", &st); err != nil || st.Uid != 1234 || st.Gid != 4321 || st.Mode&0o7777 != 0o755 {
		t.Errorf("the tool is %+v, %v", st, err)
	}
	if n, err := unix.Getxattr(root+"/root/bin/tool", "security.capability", make([]byte, 64)); n != 20 {
		t.Errorf("the tool's capabilities: %d bytes, %v", n, err)
	}
	if err := unix.Stat(root+"/root", &st); err != nil || st.Mode&0o7777 != 0o700 {
		t.Errorf("the directory has mode %o, %v", st.Mode, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(root+"/root", &fs); err != nil || int64(fs.Blocks)*fs.Bsize < 200<<20 {
		t.Errorf("the filesystem was not grown: %d blocks, %v", fs.Blocks, err)
	}
	if err := os.Remove(root + "/root/.profile"); err != nil {
		t.Fatal(err)
	}
	create(t, root+"/root/mine", "mine", 0o600)
	run(t, "umount", root+"/root")

	mountWork(t, tr, root, m)
	if _, err := os.Stat(root + "/root/.profile"); err == nil {
		t.Error("what was removed came back")
	}
	if b, err := os.ReadFile(root + "/root/mine"); string(b) != "mine" {
		t.Errorf("what was written is %q, %v", b, err)
	}
	run(t, "umount", root+"/root")
	run(t, "e2fsck", "-fn", dev)
}

func TestCutOffFillBeginsAgain(t *testing.T) {
	root, _, tr := image(t)
	create(t, root+"/root/a/b", "whole", 0o644)
	m := workMount(disk(t, 32<<20))
	mountWork(t, tr, root, m)
	create(t, root+"/root/a/b", "ha", 0o644)
	create(t, root+"/root/half/made", "", 0o644)
	if err := unix.Setxattr(root+"/root", fillMark, []byte(fillBegun), 0); err != nil {
		t.Fatal(err)
	}
	run(t, "umount", root+"/root")
	mountWork(t, tr, root, m)
	if b, err := os.ReadFile(root + "/root/a/b"); string(b) != "whole" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if _, err := os.Stat(root + "/root/half"); err == nil {
		t.Error("half of it is still there")
	}
}

func TestSomebodyElsesFilesystemIsLeftAlone(t *testing.T) {
	root, _, tr := image(t)
	create(t, root+"/root/.profile", "", 0o644)
	dev := disk(t, 32<<20)
	plain := workMount(dev)
	plain.Fill = false
	mountWork(t, tr, root, plain)
	create(t, root+"/root/theirs", "theirs", 0o644)
	run(t, "umount", root+"/root")
	mountWork(t, tr, root, workMount(dev))
	if _, err := os.Stat(root + "/root/theirs"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(root + "/root/.profile"); err == nil {
		t.Error("the image's files were added")
	}
}

func TestImageWithoutRootDirectory(t *testing.T) {
	root, _, tr := image(t)
	mountWork(t, tr, root, workMount(disk(t, 32<<20)))
	var dir, mounted unix.Stat_t
	if err := unix.Stat(root, &dir); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(root+"/root", &mounted); err != nil || mounted.Dev == dir.Dev || mounted.Mode&0o7777 != 0o700 {
		t.Errorf("/root is %+v, %v", mounted, err)
	}
}

func TestLinksDoNotLeadMountsAstray(t *testing.T) {
	for name, target := range map[string]string{"to the root": "/", "out of it": "../../outside", "nowhere": "/nowhere/at/all"} {
		t.Run(name, func(t *testing.T) {
			root, outside, tr := image(t)
			symlink(t, target, root+"/root")
			err := mountVolumes(tr, []guest.Mount{workMount(disk(t, 32<<20))})
			if err == nil {
				t.Error("it was mounted")
			}
			var a, b unix.Stat_t
			if unix.Stat(outside, &a) != nil || unix.Stat(filepath.Dir(outside), &b) != nil || a.Dev != b.Dev {
				t.Error("something was mounted outside")
			}
		})
	}
	root, _, tr := image(t)
	mkdir(t, root+"/home/root")
	symlink(t, "/home/root", root+"/root")
	m := workMount(disk(t, 32<<20))
	if err := mountVolumes(tr, []guest.Mount{m}); err != nil {
		t.Fatal(err)
	}
	run(t, "umount", root+"/home/root") // that is where it is
}

func TestVolumeErrors(t *testing.T) {
	_, _, tr := image(t)
	file := filepath.Join(t.TempDir(), "empty")
	create(t, file, strings.Repeat("x", 1<<20), 0o600)
	dev := run(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", dev).Run() })
	err := mountVolumes(tr, []guest.Mount{workMount(dev)})
	if err == nil || !strings.Contains(err.Error(), dev) || !strings.Contains(err.Error(), "/root") {
		t.Errorf("error is %v", err)
	}
}

// A disk that the host makes larger is seen, and its filesystem grown.
func TestFilesystemFollowsItsDisk(t *testing.T) {
	root, _, tr := image(t)
	dev := disk(t, 32<<20)
	m := workMount(dev)
	mountWork(t, tr, root, m)
	m.Path = root + m.Path // the test does not enter the root
	s := newTestAgent(t)
	s.watchVolumes([]guest.Mount{m})
	file := run(t, "losetup", "--noheadings", "--output", "BACK-FILE", dev)
	if err := os.Truncate(file, 128<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "losetup", "-c", dev)
	var fs unix.Statfs_t
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := unix.Statfs(m.Path, &fs); err != nil {
			t.Fatal(err)
		}
		if int64(fs.Blocks)*fs.Bsize > 100<<20 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the filesystem has %d blocks still", fs.Blocks)
		}
	}
	if _, err := s.postGrow(guest.Grow{Path: m.Path}); err != nil {
		t.Errorf("asking again: %v", err)
	}
	if _, err := s.postGrow(guest.Grow{Path: "/elsewhere"}); status(err) != 404 {
		t.Errorf("an unknown path: %v", err)
	}
}

func TestSignalsToPid1AreCounted(t *testing.T) {
	p, err := countPid1Signals()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if got := p.action(); got != "" {
		t.Errorf("action is %q before there was any", got)
	}
	if err := unix.Kill(os.Getpid(), unix.SIGURG); err != nil { // Go's own, ignored
		t.Fatal(err)
	}
	if err := unix.Kill(1, unix.SIGHUP); err != nil { // the lab's systemd reads its units again
		t.Fatal(err)
	}
	if got := p.action(); got != "" {
		t.Errorf("action is %q after other signals", got)
	}
	if err := unix.Kill(1, unix.SIGUSR1); err != nil { // it looks for the bus
		t.Fatal(err)
	}
	if got := p.action(); got != guest.ActionPowerOff {
		t.Errorf("action is %q", got)
	}
}
