package server

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A VMM makes things in its jail while it is configured: the jailer gives it
// every directory there, and it binds its sockets. From vm.handover on, which
// comes before the guest's first instruction, it needs none of that. So what it
// has there becomes root's, and a VMM that was taken over by its guest can
// neither make, rename, link, replace nor remove anything, nor fill the disk.

// A jail has some fifteen things in four directories. More of them, and the VMM
// wants to keep us busy.
const (
	maxSealed    = 256
	maxSealDepth = 8
)

// sealJail takes the jail from the VMM and lets the owner reach its sockets. It
// may be called again.
func (p Places) sealJail(id string, uid, owner int, sockets ...string) error {
	for _, path := range sockets { // there, or it would be too early
		if err := p.checkSocket(id, uid, path); err != nil {
			return err
		}
	}
	root, err := p.openRoot(id)
	if err != nil {
		return err
	}
	defer root.Close()
	s := &seal{uid: uid, owner: owner, left: maxSealed}
	if err := s.directory(root, maxSealDepth); err != nil {
		return fmt.Errorf("cannot seal the jail of VM %s: %w", id, err)
	}
	// Until now their names could be given to something else.
	for _, path := range sockets {
		sock, err := openIn(root, path[1:], unix.O_PATH, inside|unix.RESOLVE_NO_XDEV)
		if err != nil {
			return err
		}
		if err := errors.Join(share(sock, unix.S_IFSOCK, uid, owner, aclRead|aclWrite), sock.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (p Places) checkSocket(id string, uid int, path string) error {
	s, err := p.openSocket(id, path)
	if err != nil {
		return err
	}
	defer s.close()
	return shareable(s.sock, unix.S_IFSOCK, uid)
}

type seal struct {
	uid, owner int
	left       int // how many things may still be met
}

// directory takes one directory, and then all in it: what is in a directory of
// root's cannot be exchanged any more while it is looked at.
func (s *seal) directory(dir *os.File, depth int) error {
	if depth == 0 {
		return errors.New("the VMM made too many directories")
	}
	rights := aclFor(aclSearch, s.owner, s.uid)
	// Before the change of hands, so that the VMM is locked out at no moment; and
	// after it, since until then it could change what was its own.
	for _, step := range []func(*os.File) error{rights.set, s.take, rights.set} {
		if err := step(dir); err != nil {
			return err
		}
	}
	names, err := s.list(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.entry(dir, name, depth); err != nil {
			return err
		}
	}
	return nil
}

func (s *seal) list(dir *os.File) ([]string, error) {
	d, err := openIn(dir, ".", os.O_RDONLY|unix.O_DIRECTORY, inside|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(s.left + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if s.left -= len(names); s.left < 0 {
		return nil, errors.New("the VMM made too many files")
	}
	return names, nil
}

// entry takes what can be filled. Sockets, the FIFO and the disks' nodes stay
// the VM's, which uses them; so does a symlink, which nobody follows.
func (s *seal) entry(dir *os.File, name string, depth int) error {
	f, err := openIn(dir, name, unix.O_PATH, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("cannot stat %q: %w", name, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return s.directory(f, depth-1)
	case unix.S_IFREG:
		return errors.Join(s.take(f), s.closeToWriters(f, st))
	}
	return nil
}

// closeToWriters takes away what a VMM may have given to everybody or, by an ACL,
// to itself, in a file that was its own.
func (s *seal) closeToWriters(f *os.File, st unix.Stat_t) error {
	if int(st.Uid) != s.uid {
		return nil // never was
	}
	path := procFD(f)
	if err := unix.Removexattr(path, "system.posix_acl_access"); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("cannot take the ACL off %q: %w", f.Name(), err)
	}
	if err := unix.Chmod(path, st.Mode&0o755); err != nil {
		return fmt.Errorf("cannot close %q to writers: %w", f.Name(), err)
	}
	return nil
}

// take makes a directory or file root's.
func (s *seal) take(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("cannot stat %q: %w", f.Name(), err)
	}
	root := os.Geteuid()
	switch int(st.Uid) {
	case root:
		return nil // staged by us, or taken before
	case s.uid:
	default:
		return fmt.Errorf("%q belongs to uid %d", f.Name(), st.Uid)
	}
	if err := unix.Fchownat(int(f.Fd()), "", root, os.Getegid(), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot take %q: %w", f.Name(), err)
	}
	return nil
}
