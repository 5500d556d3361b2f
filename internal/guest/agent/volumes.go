package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// mountVolumes mounts the guest's further filesystems into root, which is the
// image before it is entered. They vanish with the image when that is
// unmounted.
func mountVolumes(root tree, mounts []guest.Mount) error {
	for _, m := range mounts {
		if err := mountVolume(root, m); err != nil {
			return fmt.Errorf("cannot mount %s at %s: %w", m.Device, m.Path, err)
		}
	}
	return nil
}

// mountVolume makes the filesystem complete before anybody can see it: it is
// attached to the tree last.
func mountVolume(root tree, m guest.Mount) error {
	if err := waitForFile(m.Device, deviceTimeout); err != nil {
		return err
	}
	point, err := root.mountPoint(m.Path)
	if err != nil {
		return err
	}
	defer unix.Close(point)
	volume, err := openVolume(m.Device, m.FSType)
	if err != nil {
		return err
	}
	defer unix.Close(volume) // unmounts it, unless it was attached
	if m.Grow {
		if err := growExt4(m.Device, volume); err != nil {
			return err
		}
	}
	if m.Fill {
		if err := fillVolume(point, volume); err != nil {
			return err
		}
	}
	return unix.MoveMount(volume, "", point, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// mountPoint opens the directory at name, making what is missing. What it makes
// is root's alone, as home directories are.
func (t tree) mountPoint(name string) (int, error) {
	fd, err := t.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		fd, err = t.makePrivate(name)
	}
	if err != nil {
		return -1, fmt.Errorf("cannot open the directory in the image: %w", err)
	}
	var point, root unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &point), unix.Fstat(t.fd, &root)); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	if point.Dev == root.Dev && point.Ino == root.Ino {
		_ = unix.Close(fd)
		return -1, errors.New("a link in the image makes this the root directory")
	}
	return fd, nil
}

func (t tree) makePrivate(name string) (int, error) {
	parent, err := t.openDir(path.Dir(name))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, path.Base(name), 0o700); err != nil {
		return -1, err // EEXIST: a link that leads nowhere
	}
	return unix.Openat(parent, path.Base(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// openVolume mounts a filesystem where only the descriptor leads to.
func openVolume(device, fsType string) (int, error) {
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("cannot use %s (does the guest's kernel have it?): %w", fsType, err)
	}
	defer unix.Close(fs)
	err = unix.FsconfigSetString(fs, "source", device)
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return -1, fmt.Errorf("cannot read it as %s: %w", fsType, err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

// ext4ResizeFS is EXT4_IOC_RESIZE_FS: _IOW('f', 16, __u64).
const ext4ResizeFS = 0x40086610

// growExt4 makes the mounted filesystem as large as its device. It does not
// ask the kernel for nothing, since that costs a flush of the disk.
func growExt4(device string, volume int) error {
	dev, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("cannot grow the filesystem: %w", err)
	}
	defer dev.Close()
	size, err := dev.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("cannot tell the size of %s: %w", device, err)
	}
	head := make([]byte, ext4HeadSize)
	if _, err := dev.ReadAt(head, ext4HeadAt); err != nil {
		return fmt.Errorf("cannot read the filesystem's size: %w", err)
	}
	blocks, blockSize, err := ext4Size(head)
	if err != nil {
		return err
	}
	want := uint64(size) / blockSize
	if want <= blocks {
		return nil
	}
	top, err := unix.Openat(volume, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot grow the filesystem: %w", err)
	}
	defer unix.Close(top)
	arg := binary.NativeEndian.AppendUint64(nil, want)
	// The name is misleading: it passes a pointer to these very bytes.
	if err := unix.IoctlSetString(top, ext4ResizeFS, string(arg)); err != nil {
		return fmt.Errorf("cannot grow the filesystem from %d to %d blocks: %w", blocks, want, err)
	}
	return nil
}

// The part of ext4's superblock that tells its size.
const (
	ext4HeadAt   = 1024
	ext4HeadSize = 0x154
	ext4Magic    = 0xef53
	ext4Is64bit  = 0x80
)

func ext4Size(head []byte) (blocks, blockSize uint64, err error) {
	le := binary.LittleEndian
	if len(head) < ext4HeadSize || le.Uint16(head[0x38:]) != ext4Magic {
		return 0, 0, errors.New("there is no ext4 filesystem")
	}
	shift := le.Uint32(head[0x18:])
	if shift > 6 { // 64 KiB is the largest block there is
		return 0, 0, errors.New("the ext4 filesystem has no valid block size")
	}
	blocks = uint64(le.Uint32(head[0x4:]))
	if le.Uint32(head[0x60:])&ext4Is64bit != 0 {
		blocks |= uint64(le.Uint32(head[0x150:])) << 32
	}
	return blocks, 1024 << shift, nil
}
