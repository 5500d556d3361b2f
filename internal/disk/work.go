// Package disk makes and moves the files that VMs' disks are made of, and
// watches the room they have: thin files, which take on the host what was
// written to them and no more. It runs with the owner's rights; what needs
// root is banger-helper's.
package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"banger/api"
)

// Sizes of work disks. The smallest has room for ext4's journal; the largest is
// where ext4 with these features ends.
const (
	Smallest = 16 << 20
	Largest  = 16 << 40
	// unit is what every size must be a multiple of: the helper's and ext4's block.
	unit = 4096
)

// Label is the name of the filesystem on a work disk.
const Label = "work"

// features is what every kernel since 4.2 can mount; nothing is left to
// /etc/mke2fs.conf, which differs between hosts. resize_inode keeps room for
// growing while it is mounted.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// CheckSize says whether a work disk can have this size.
func CheckSize(size int64) error {
	switch {
	case size < Smallest || size > Largest:
		return api.BadRequest("a work disk of %d bytes is not possible: want %d MiB to %d TiB", size, Smallest>>20, int64(Largest)>>40)
	case size%unit != 0:
		return api.BadRequest("a work disk of %d bytes is not possible: want a multiple of %d", size, unit)
	}
	return nil
}

// MakeWork makes a work disk with an empty ext4. The file appears under its name
// when it is complete and on the disk; one that is there already is an error
// that is fs.ErrExist, and stays as it is.
func MakeWork(ctx context.Context, path string, size int64) error {
	if err := CheckSize(size); err != nil {
		return err
	}
	mke2fs, err := findTool("mke2fs")
	if err != nil {
		return err
	}
	err = appear(path, func(f *os.File) error {
		if err := f.Truncate(size); err != nil {
			return err
		}
		return mkfs(ctx, mke2fs, f.Name(), size)
	})
	if err != nil {
		return failed("make work disk", path, err)
	}
	return nil
}

func mkfs(ctx context.Context, mke2fs, path string, size int64) error {
	args := []string{"-q", "-F", "-t", "ext4", "-O", features, "-m", "0", "-b", strconv.Itoa(unit), "-I", "256", "-L", Label,
		// The tables of a new sparse file are zero, so nobody has to write them.
		"-E", "assume_storage_prezeroed=1,root_owner=0:0"}
	if size >= 2<<30 {
		// The default grows with the size, and all of a journal is written
		// again and again.
		args = append(args, "-J", "size=64")
	}
	cmd := exec.CommandContext(ctx, mke2fs, append(args, path)...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "MKE2FS_CONFIG=/dev/null"}
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		return nil
	case bytes.Contains(out, []byte("No space left on device")):
		err = errors.Join(unix.ENOSPC, err)
	}
	return fmt.Errorf("mke2fs: %w: %.300q", err, out)
}

// findTool looks where e2fsprogs may be: an ordinary user's PATH often lacks the
// sbin directories.
func findTool(name string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if found, err := exec.LookPath(candidate); err == nil {
			return found, nil
		}
	}
	return "", api.Problemf(503, api.CodePrerequisite, "cannot make a work disk: the program %s is missing", name).
		WithHint("install the package e2fsprogs")
}

// Grow makes the file of a work disk larger, which takes no room by itself, and
// returns once that would survive a power cut. The same size is fine; a smaller
// one is refused, since it would cut off what is there.
//
// A VM that runs sees it after the helper's vm.grow.
func Grow(path string, size int64) error {
	if err := CheckSize(size); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("cannot grow work disk: %w", err)
	}
	defer f.Close() // synced below, if there is anything to lose
	info, err := f.Stat()
	switch {
	case err != nil:
		return fmt.Errorf("cannot grow work disk: %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("cannot grow work disk: %s is no regular file", path)
	case info.Size() > size:
		return api.BadRequest("the work disk has %d MiB already; it cannot become smaller", info.Size()>>20).
			WithHint("make a new VM with a smaller disk and copy what is needed")
	case info.Size() == size:
		return nil
	}
	if err := errors.Join(f.Truncate(size), f.Sync()); err != nil {
		return failed("grow work disk", path, err)
	}
	return nil
}

// appear lets make fill a file that has path for its name once it is complete.
// It works under a name of its own, which a crash may leave and the next attempt
// removes: two at once must not work on one path.
func appear(path string, make func(f *os.File) error) (err error) {
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temporary, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temporary))
		}
	}()
	err = make(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, temporary, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: temporary, New: path, Err: err}
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// failed tells a full filesystem from other failures.
func failed(what, path string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return api.Problemf(507, api.CodeNoSpace, "cannot %s %s: no space is left", what, path).
			WithHint("delete VMs or images that are no longer needed, see `banger vm list` and `banger image list`")
	}
	return fmt.Errorf("cannot %s %s: %w", what, path, err)
}
