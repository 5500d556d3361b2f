package agent

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// tree is an image's root directory before it is entered. Every path is
// resolved as if this were the root already: absolute links and .. stay
// inside, whatever the image put there.
type tree struct{ fd int }

func openTree(dir string) (tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return tree{-1}, fmt.Errorf("cannot open %s: %w", dir, err)
	}
	return tree{fd}, nil
}

func (t tree) close() { _ = unix.Close(t.fd) }

func (t tree) open(name string, flags uint64) (int, error) {
	return unix.Openat2(t.fd, name, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// openDir opens a directory, making it and its parents where they are missing.
func (t tree) openDir(name string) (int, error) {
	fd, err := t.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) || name == "/" {
		return fd, err
	}
	parent, err := t.openDir(path.Dir(name))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, path.Base(name), 0o755); err != nil {
		return -1, err // EEXIST: a link that leads nowhere
	}
	return unix.Openat(parent, path.Base(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// write puts f into the tree as root's. A link at the path itself is replaced,
// not followed: /etc/resolv.conf is often one, into a directory that does not
// exist yet.
func (t tree) write(f guest.File) error {
	dir, err := t.openDir(path.Dir(f.Path))
	if err != nil {
		return fmt.Errorf("cannot open the directory of %s: %w", f.Path, err)
	}
	defer unix.Close(dir)
	const temp = ".banger-new"      // nothing else runs in the image yet
	_ = unix.Unlinkat(dir, temp, 0) // left by a guest that was killed at this very point
	fd, err := unix.Openat(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", f.Path, err)
	}
	err = writeAll(fd, f.Content)
	if err == nil {
		err = unix.Fchmod(fd, f.Mode)
	}
	err = errors.Join(err, unix.Close(fd))
	if err == nil {
		err = unix.Renameat(dir, temp, dir, path.Base(f.Path))
	}
	if err != nil {
		_ = unix.Unlinkat(dir, temp, 0) // the reason to report is err
		return fmt.Errorf("cannot write %s: %w", f.Path, err)
	}
	return nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// inits are where images keep their init, in order of preference.
var inits = []string{
	"/sbin/init", "/usr/sbin/init",
	"/lib/systemd/systemd", "/usr/lib/systemd/systemd",
	"/etc/init", "/bin/init",
}

// findInit returns the path of the image's init, or "" if it has none. wanted
// is the one path to take if it is set; it must be there then.
func (t tree) findInit(wanted string) (string, error) {
	if wanted != "" {
		if !t.executable(wanted) {
			return "", fmt.Errorf("init %s is not an executable file of the image", wanted)
		}
		return wanted, nil
	}
	for _, p := range inits {
		if t.executable(p) {
			return p, nil
		}
	}
	return "", nil
}

func (t tree) executable(name string) bool {
	fd, err := t.open(name, unix.O_PATH)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o111 != 0
}
