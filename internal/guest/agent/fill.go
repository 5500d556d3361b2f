package agent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// fillMark is on the filesystem's own root directory: nobody but the guest's
// root can see or change it, and no rm in the directory takes it away.
const fillMark = "trusted.banger.fill"

// States of a fill. Without a mark the filesystem is new, or somebody else's.
const (
	fillBegun = "begun"
	fillDone  = "done"
)

// fillVolume copies what the image has at the mount point, once in the
// filesystem's life. Cut off at any moment it begins again the next time: the
// journal keeps the order of mark, copies and mark. A filesystem that has files
// but no mark was filled by somebody else, and is left as it is.
func fillVolume(point, volume int) error {
	top, err := unix.Openat(volume, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open the filesystem: %w", err)
	}
	defer unix.Close(top)
	state, err := readMark(top)
	if err != nil || state == fillDone {
		return err
	}
	if state == "" {
		names, err := volumeNames(top)
		if err != nil {
			return err
		}
		if len(names) > 0 {
			return setMark(top, fillDone)
		}
	}
	if err := refill(point, top); err != nil {
		return fmt.Errorf("cannot fill it with what the image has there: %w", err)
	}
	return nil
}

func refill(point, top int) error {
	if err := setMark(top, fillBegun); err != nil {
		return err
	}
	names, err := volumeNames(top)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := removeAll(top, name); err != nil {
			return err
		}
	}
	from, err := unix.Openat(point, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	c := copier{links: map[inode]string{}, top: top}
	if err := c.directory(from, top, "."); err != nil {
		return err
	}
	if err := unix.Syncfs(top); err != nil {
		return err
	}
	return setMark(top, fillDone)
}

func readMark(top int) (string, error) {
	buf := make([]byte, 64)
	n, err := unix.Fgetxattr(top, fillMark, buf)
	if errors.Is(err, unix.ENODATA) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("cannot tell whether it was filled: %w", err)
	}
	return string(buf[:n]), nil
}

func setMark(top int, state string) error {
	if err := unix.Fsetxattr(top, fillMark, []byte(state), 0); err != nil {
		return fmt.Errorf("cannot mark it as %s: %w", state, err)
	}
	if err := unix.Fsync(top); err != nil {
		return fmt.Errorf("cannot mark it as %s: %w", state, err)
	}
	return nil
}

// lostFound is made by mke2fs and wanted by e2fsck.
const lostFound = "lost+found"

// volumeNames lists the filesystem's root but for what mke2fs puts there.
func volumeNames(top int) ([]string, error) {
	names, err := readNames(top)
	if err != nil {
		return nil, fmt.Errorf("cannot list the filesystem: %w", err)
	}
	kept := names[:0]
	for _, n := range names {
		if n != lostFound {
			kept = append(kept, n)
		}
	}
	return kept, nil
}

// readNames lists a directory by a descriptor of its own, so that dir can be
// listed again.
func readNames(dir int) ([]string, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	return f.Readdirnames(-1)
}

// removeAll removes name and what is below it, without following a link.
func removeAll(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return fmt.Errorf("cannot remove %s: %w", name, err)
	}
	sub, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sub)
	names, err := readNames(sub)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAll(sub, n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}
