package agent

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

type inode struct{ dev, ino uint64 }

// copier copies a tree of files with all that belongs to them: owners, modes,
// times, extended attributes, links and special files. It stays on the
// filesystem it begins on, follows no link, and lets go of each descriptor
// before it goes on to the next sibling.
type copier struct {
	top   int              // where the copy begins
	links map[inode]string // first copy of each file with several names, as a path below top
}

// directory copies what is in from into to, which is the path at below top,
// and makes to look like from, last, since writing in it changes its times.
func (c *copier) directory(from, to int, at string) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	names, err := readNames(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.entry(from, to, name, path.Join(at, name), st.Dev); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := setAttributes(to, "", &st); err != nil {
		return err
	}
	return copyXattrs(from, to)
}

// entry copies one name. dev is the filesystem to stay on.
func (c *copier) entry(from, to int, name, at string, dev uint64) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Dev != dev {
		return nil // something is mounted there; files of an overlay have other numbers
	}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		id := inode{st.Dev, st.Ino}
		if first, ok := c.links[id]; ok {
			return unix.Linkat(c.top, first, to, name, 0)
		}
		c.links[id] = at
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return c.subdirectory(from, to, name, at)
	case unix.S_IFREG:
		return c.file(from, to, name, &st)
	case unix.S_IFLNK:
		return c.symlink(from, to, name, &st)
	case unix.S_IFSOCK:
		return nil // nobody listens on it any more
	default: // devices and FIFOs
		if err := unix.Mknodat(to, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
		return setAttributes(to, name, &st)
	}
}

func (c *copier) subdirectory(from, to int, name, at string) error {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	in, err := unix.Openat(from, name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	err = unix.Mkdirat(to, name, 0o700)
	if err != nil && (at != lostFound || !errors.Is(err, unix.EEXIST)) {
		return err
	}
	out, err := unix.Openat(to, name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(out)
	return c.directory(in, out, at)
}

func (c *copier) file(from, to int, name string, st *unix.Stat_t) error {
	in, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	out, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err = copyData(in, out, st.Size); err == nil {
		err = setAttributes(out, "", st)
	}
	if err == nil {
		err = copyXattrs(in, out) // a change of owner takes capabilities away
	}
	return errors.Join(err, unix.Close(out))
}

// copyData keeps holes: images have sparse files.
func copyData(in, out int, size int64) error {
	for at := int64(0); at < size; {
		begin, err := unix.Seek(in, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // a hole up to the end
			break
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(in, begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := copyRange(in, out, begin, end); err != nil {
			return err
		}
		at = end
	}
	return unix.Ftruncate(out, size)
}

func copyRange(in, out int, begin, end int64) error {
	buf := make([]byte, min(end-begin, 1<<20))
	for at := begin; at < end; {
		n, err := unix.Pread(in, buf[:min(int64(len(buf)), end-at)], at)
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("the file became shorter")
		}
		for done := 0; done < n; {
			w, err := unix.Pwrite(out, buf[done:n], at+int64(done))
			if err != nil {
				return err
			}
			done += w
		}
		at += int64(n)
	}
	return nil
}

func (c *copier) symlink(from, to int, name string, st *unix.Stat_t) error {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(from, name, target)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(string(target[:n]), to, name); err != nil {
		return err
	}
	return setAttributes(to, name, st)
}

// setAttributes gives owner, mode and times to the file at name in dir, or to
// dir itself if name is empty. The mode comes after the owner, which takes
// set-uid bits away.
func setAttributes(dir int, name string, st *unix.Stat_t) error {
	if err := unix.Fchownat(dir, name, int(st.Uid), int(st.Gid), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // a link has no mode
		var err error
		if name == "" {
			err = unix.Fchmod(dir, st.Mode&0o7777)
		} else {
			err = unix.Fchmodat(dir, name, st.Mode&0o7777, 0) // of our own making, no link
		}
		if err != nil {
			return err
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if name == "" {
		return futimens(dir, times)
	}
	return unix.UtimesNanoAt(dir, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

func futimens(fd int, times []unix.Timespec) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), times, 0)
}

// copyXattrs copies what the kernel's users put there: capabilities, access
// lists and labels. What the filesystem itself keeps as one, and our own mark,
// are not among them.
func copyXattrs(in, out int) error {
	list, err := growing(func(b []byte) (int, error) { return unix.Flistxattr(in, b) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	for raw := range bytes.SplitSeq(list, []byte{0}) {
		name := string(raw)
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") || name == fillMark {
			continue
		}
		value, err := growing(func(b []byte) (int, error) { return unix.Fgetxattr(in, name, b) })
		if err == nil {
			err = unix.Fsetxattr(out, name, value, 0)
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

// growing calls f with a buffer that becomes large enough.
func growing(f func([]byte) (int, error)) ([]byte, error) {
	for size := 1 << 10; ; size *= 4 {
		buf := make([]byte, size)
		n, err := f(buf)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}
