package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// Places in the initrd.
const (
	newRoot   = "/newroot"
	lowerRoot = "/lower"   // the image, where it is read-only
	upperRoot = "/changes" // tmpfs that takes the writes then
)

// deviceTimeout is for a disk whose driver is still looking: generous, since
// nothing else can be done, and short enough for a clear error.
const deviceTimeout = 10 * time.Second

// mountRoot mounts the image at newRoot. After a failure nothing is mounted.
func mountRoot(r guest.Root) error {
	if err := waitForFile(r.Device, deviceTimeout); err != nil {
		return fmt.Errorf("cannot find the root disk: %w", err)
	}
	for _, dir := range []string{newRoot, lowerRoot, upperRoot} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("cannot make a mount point: %w", err)
		}
	}
	if r.ReadOnly {
		return mountOverlay(r)
	}
	if err := unix.Mount(r.Device, newRoot, r.FSType, 0, ""); err != nil {
		return fmt.Errorf("cannot mount %s as %s: %w", r.Device, r.FSType, err)
	}
	return nil
}

// mountOverlay lets a read-only image be written to, in memory.
func mountOverlay(r guest.Root) error {
	if err := unix.Mount(r.Device, lowerRoot, r.FSType, unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("cannot mount %s as %s, read-only: %w", r.Device, r.FSType, err)
	}
	err := unix.Mount("tmpfs", upperRoot, "tmpfs", 0, "mode=0755")
	if err == nil {
		err = errors.Join(os.Mkdir(upperRoot+"/upper", 0o755), os.Mkdir(upperRoot+"/work", 0o755))
	}
	if err == nil {
		err = unix.Mount("overlay", newRoot, "overlay", 0,
			"lowerdir="+lowerRoot+",upperdir="+upperRoot+"/upper,workdir="+upperRoot+"/work")
	}
	if err != nil {
		unmountRoot()
		return fmt.Errorf("cannot put a writable layer over the read-only root (does the kernel have overlay?): %w", err)
	}
	return nil
}

// unmountRoot undoes mountRoot, in so far as it got.
func unmountRoot() {
	for _, dir := range []string{newRoot, upperRoot, lowerRoot} {
		_ = unix.Unmount(dir, unix.MNT_DETACH) // EINVAL: it was not mounted
	}
}

// enterRoot makes newRoot the root of this process and of pid 1, which shares
// it. The move, not only chroot, is what lets user namespaces and pivot_root
// work in the guest.
func enterRoot() error {
	err := unix.Chdir(newRoot)
	if err == nil {
		err = unix.Mount(".", "/", "", unix.MS_MOVE, "")
	}
	if err == nil {
		err = unix.Chroot(".")
	}
	if err == nil {
		err = unix.Chdir("/")
	}
	if err != nil {
		return fmt.Errorf("cannot enter the image's root: %w", err)
	}
	return nil
}

// waitForFile returns when path exists. It is told by inotify: devtmpfs
// reports its nodes as any filesystem does.
func waitForFile(path string, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("cannot watch for %s: %w", path, err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return fmt.Errorf("cannot watch for %s: %w", path, err)
	}
	events := make([]byte, 4096)
	for {
		if _, err := os.Lstat(path); err == nil {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("%s did not appear within %v", path, timeout)
		}
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot wait for %s: %w", path, err)
		}
		_, _ = unix.Read(fd, events) // only the wake-up counts; EAGAIN after a timeout
	}
}
