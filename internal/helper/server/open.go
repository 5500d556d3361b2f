package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"banger/api"
)

// inside is how a path of somebody else's choosing is resolved: below the
// directory, through no symlink of any kind, anywhere in the path.
const inside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// openIn opens path below dir. Everything that follows must use the returned
// file and never the path again.
func openIn(dir *os.File, path string, flags int, resolve uint64) (*os.File, error) {
	how := &unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: resolve}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), path, how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case errors.Is(err, unix.EINTR):
			continue
		}
		// EAGAIN is an answer, too. Without ".." no rename causes it, but a lease on
		// the file does, for as long as its holder likes.
		return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
}

// ownerFile opens a file of the owner, named relative to his state directory.
// It is a regular file, belongs to him, and has one name only, so that no
// other file can be meant.
func (s *Server) ownerFile(path string, flags int) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	// No "..": while anything is renamed anywhere, the kernel would ask us to try
	// such a path again and again, and a caller could keep us busy with it.
	if !filepath.IsLocal(path) || filepath.Clean(path) != path {
		return nil, st, api.BadRequest("%.200q is no plain path below the state directory", path)
	}
	dir, err := os.OpenFile(s.places.State, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, st, fmt.Errorf("cannot open state directory: %w", err)
	}
	defer dir.Close()
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, st, fmt.Errorf("cannot stat state directory: %w", err)
	}
	if st.Uid != uint32(s.record.UID) {
		return nil, st, fmt.Errorf("%s belongs to uid %d, not to the owner", s.places.State, st.Uid)
	}
	// Without O_NONBLOCK, opening a FIFO would wait for its other end.
	flags |= unix.O_NONBLOCK | unix.O_NOCTTY
	f, err := openIn(dir, path, flags, inside|unix.RESOLVE_NO_XDEV)
	if errors.Is(err, unix.EXDEV) { // it is behind a mount, or outside
		if err := s.refuseFUSE(path); err != nil {
			return nil, st, err
		}
		f, err = openIn(dir, path, flags, inside)
	}
	if err != nil {
		return nil, st, pathProblem(path, err)
	}
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, st, errors.Join(fmt.Errorf("cannot stat %q: %w", path, err), f.Close())
	}
	if why := s.unfit(&st); why != "" {
		return nil, st, errors.Join(api.BadRequest("%.200q %s", path, why), f.Close())
	}
	return f, st, nil
}

// refuseFUSE refuses what the owner can mount himself: behind it every answer may be as
// late as he likes. What an administrator mounted there is fine.
func (s *Server) refuseFUSE(path string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.places.State))
	if err != nil {
		return fmt.Errorf("cannot read mount table: %w", err)
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.FSType, "fuse") {
			return api.BadRequest("cannot open %.200q: FUSE is mounted at %s", path, m.Mountpoint).WithHint("unmount it: `fusermount -u %s`", m.Mountpoint)
		}
	}
	return nil
}

func (s *Server) unfit(st *unix.Stat_t) string {
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return "is not a regular file"
	case st.Uid != uint32(s.record.UID):
		return fmt.Sprintf("belongs to uid %d, not to the owner", st.Uid)
	case st.Nlink != 1:
		return fmt.Sprintf("has %d names", st.Nlink)
	case st.Size == 0:
		return "is empty"
	}
	return ""
}

func pathProblem(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return api.NotFound("cannot open %.200q: no such file in the state directory", path)
	case errors.Is(err, unix.EAGAIN):
		return api.Conflict("cannot open %.200q: a program holds a lease on it", path)
	case errors.Is(err, unix.ELOOP):
		return api.BadRequest("cannot open %.200q: symlinks are not followed", path)
	case errors.Is(err, unix.EXDEV):
		return api.BadRequest("cannot open %.200q: it leaves the state directory", path)
	case errors.Is(err, unix.EPERM): // a device that the unit's rules do not allow
		return api.BadRequest("cannot open %.200q: it is no file of the owner", path)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTDIR),
		errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENAMETOOLONG):
		return api.BadRequest("cannot open %.200q: %v", path, errors.Unwrap(err))
	}
	return fmt.Errorf("cannot open %.200q: %w", path, err)
}

// expect checks what an opened thing is and whose.
func expect(f *os.File, kind, uid uint32) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return st, fmt.Errorf("cannot stat %s: %w", f.Name(), err)
	}
	if st.Mode&unix.S_IFMT != kind || st.Uid != uid {
		return st, fmt.Errorf("%s is not what it should be (mode %o, uid %d)", f.Name(), st.Mode, st.Uid)
	}
	return st, nil
}
