package agent

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

// firstMounts are in the initrd and go out of sight with it.
var firstMounts = []mount{
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
}

// imageMounts are what programs take for granted, mounted in the image's root
// before its init starts, as an initrd does. Every init leaves alone what is
// mounted already.
var imageMounts = slices.Concat(firstMounts, []mount{
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
	{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
})

// runMount is for images with an init: those without one bring directories in
// /run that their services need.
var runMount = mount{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=20%,nr_inodes=800k"}

// deviceLinks are made by udev or systemd, where there is one.
var deviceLinks = [][2]string{
	{"/proc/self/fd", "/dev/fd"},
	{"/proc/self/fd/0", "/dev/stdin"},
	{"/proc/self/fd/1", "/dev/stdout"},
	{"/proc/self/fd/2", "/dev/stderr"},
}

// mountImage completes the root this process has entered. /proc and /dev are
// needed; a kernel may lack the rest, so that is reported and lived with.
func mountImage(hasInit bool) (warnings error, err error) {
	var missing []error
	mounts := imageMounts
	if hasInit {
		mounts = append(slices.Clip(mounts), runMount)
	}
	for i, m := range mounts {
		switch err := mountAt(m); {
		case err == nil:
		case i < len(firstMounts):
			return nil, err
		default:
			missing = append(missing, err)
		}
	}
	for _, l := range deviceLinks {
		if err := os.Symlink(l[0], l[1]); err != nil && !errors.Is(err, os.ErrExist) {
			missing = append(missing, err)
		}
	}
	return errors.Join(missing...), nil
}

// mountAt mounts m, making the directory if the image has none.
func mountAt(m mount) error {
	err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
	if errors.Is(err, unix.ENOENT) {
		if err := os.Mkdir(m.target, 0o755); err != nil {
			return fmt.Errorf("cannot make %s in the image: %w", m.target, err)
		}
		err = unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
	}
	if err != nil {
		return fmt.Errorf("cannot mount %s: %w", m.target, err)
	}
	return nil
}
