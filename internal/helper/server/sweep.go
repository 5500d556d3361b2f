package server

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"banger/api"
)

// removeJail deletes the VM's jail directory. It is fine if there is none.
//
// Its content was made by a VMM that may have been hostile. Nothing is ever
// followed: not a symlink, and not a mount, so that what an administrator
// mounted somewhere below outlives the VM. The mount table is asked first, to
// refuse with words; RESOLVE_NO_XDEV holds the rule whatever happens meanwhile.
func (p Places) removeJail(id string) error {
	parent, err := os.OpenFile(p.Jails, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("cannot open jails: %w", err)
	}
	defer parent.Close()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(p.jail(id)))
	if err != nil {
		return fmt.Errorf("cannot read mount table: %w", err)
	}
	if len(mounts) > 0 {
		return api.Conflict("jail of VM %s is not removed, since something is mounted at %s", id, mounts[0].Mountpoint).
			WithHint("unmount it, then delete the VM again")
	}
	if err := removeTree(parent, id); err != nil {
		return fmt.Errorf("cannot remove jail of VM %s: %w", id, err)
	}
	return nil
}

// removeTree deletes the directory name in parent. A tree may be too deep for
// recursion or for a path: directories with content are moved up to the top and
// emptied there, so that two levels are all there ever is to handle.
func removeTree(parent *os.File, name string) error {
	top, err := openDirIn(parent, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer top.Close()
	s := sweep{top: top}
	for {
		n, err := s.pass(top, s.removeDir)
		if err != nil {
			return err
		}
		if n == 0 {
			return rmdir(parent, name)
		}
	}
}

// sweep is one removal.
type sweep struct {
	top   *os.File
	moved int // numbers the names of directories that were moved up
}

func openDirIn(dir *os.File, name string) (*os.File, error) {
	return openIn(dir, name, os.O_RDONLY|unix.O_DIRECTORY, inside|unix.RESOLVE_NO_XDEV)
}

func rmdir(dir *os.File, name string) error {
	return unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
}

// pass unlinks what is in dir, calls onDir for directories, and returns how
// many entries it saw. Entries can hide from a pass that deletes while it
// reads: callers repeat it until there are none.
func (s *sweep) pass(dir *os.File, onDir func(dir *os.File, name string) error) (seen int, err error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	for {
		names, err := dir.Readdirnames(256)
		if errors.Is(err, io.EOF) {
			return seen, nil
		}
		if err != nil {
			return seen, err
		}
		for _, name := range names {
			seen++
			err := unix.Unlinkat(int(dir.Fd()), name, 0)
			if errors.Is(err, unix.EISDIR) {
				err = onDir(dir, name)
			}
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return seen, fmt.Errorf("cannot delete %q: %w", name, err)
			}
		}
	}
}

// removeDir empties a directory at the top and deletes it.
func (s *sweep) removeDir(dir *os.File, name string) error {
	d, err := openDirIn(dir, name)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		n, err := s.pass(d, s.moveUp)
		if err != nil {
			return err
		}
		if n == 0 {
			return rmdir(dir, name)
		}
	}
}

// moveUp deletes a directory below the second level if it is empty, and moves
// it to the top otherwise, where a later pass finds it.
func (s *sweep) moveUp(dir *os.File, name string) error {
	err := rmdir(dir, name)
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	for {
		s.moved++
		err := unix.Renameat2(int(dir.Fd()), name, int(s.top.Fd()), "sweep."+strconv.Itoa(s.moved), unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) { // a name that an interrupted sweep left
			return err
		}
	}
}
