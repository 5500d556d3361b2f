package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/api"
)

// openTrusted opens a program that will run as root. Only root can have
// chosen what it is: the file and every directory above it belong to root,
// nobody else can write to them, and no part of the path is a symlink.
func openTrusted(path string) (*os.File, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return nil, fmt.Errorf("%q is not a clean absolute path", path)
	}
	here, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	parts := strings.Split(path[1:], "/")
	for i, part := range parts {
		flags, kind := unix.O_PATH|unix.O_DIRECTORY, uint32(unix.S_IFDIR)
		if i == len(parts)-1 {
			flags, kind = unix.O_RDONLY|unix.O_NONBLOCK, unix.S_IFREG
		}
		next, err := openIn(here, part, flags, inside)
		here.Close()
		if err != nil {
			return nil, fmt.Errorf("cannot open %s: %w", path, err)
		}
		here = next
		if err := rootOnly(here, kind); err != nil {
			here.Close()
			return nil, fmt.Errorf("cannot trust %s: %w", path, err)
		}
	}
	return here, nil
}

func rootOnly(f *os.File, kind uint32) error {
	st, err := expect(f, kind, 0)
	if err != nil {
		return err
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("%q can be written by others than root (mode %o)", f.Name(), st.Mode&0o7777)
	}
	return nil
}

// checkPrograms is what every launch asks of Firecracker and jailer.
func (s *Server) checkPrograms() error {
	for _, path := range []string{s.record.Firecracker, s.record.Jailer} {
		f, err := openTrusted(path)
		if err != nil {
			return api.Problemf(412, api.CodePrerequisite, "%v", err).WithHint("run `banger system install` again")
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	// The jailer names its directory after the program.
	if filepath.Base(s.record.Firecracker) != filepath.Base(s.places.Jails) {
		return api.Problemf(412, api.CodePrerequisite, "%s must be called %s", s.record.Firecracker, filepath.Base(s.places.Jails))
	}
	return nil
}
