package agent

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// growVolumes makes filesystems larger when the host has made their disks
// larger under the running guest. The kernel tells about that as about every
// change of a device. It returns when it cannot hear the kernel.
func (s *server) growVolumes(mounts []guest.Mount) {
	grow := map[string]guest.Mount{} // by the device's name
	for _, m := range mounts {
		if m.Grow {
			grow[filepath.Base(m.Device)] = m
		}
	}
	if len(grow) == 0 {
		return
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err == nil {
		defer unix.Close(fd)
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})
	}
	buf := make([]byte, 8192)
	for err == nil {
		var n int
		var from unix.Sockaddr
		n, from, err = unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) {
			err = nil
			continue
		}
		if sender, ok := from.(*unix.SockaddrNetlink); err != nil || !ok || sender.Pid != 0 { // only the kernel's word counts
			continue
		}
		if m, ok := grow[resizedDisk(buf[:n])]; ok {
			if err := growMounted(m); err != nil {
				s.log.Warn(err.Error())
			}
		}
	}
	s.log.Warn("disks that grow will be noticed at the next start only", "err", err)
}

// resizedDisk returns the name of the disk whose size the event says has
// changed, "" for other events.
func resizedDisk(event []byte) string {
	var name string
	var resized, disk bool
	for field := range bytes.SplitSeq(event, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "RESIZE":
			resized = value == "1"
		case "SUBSYSTEM":
			disk = value == "block"
		case "DEVNAME":
			name = value
		}
	}
	if !resized || !disk {
		return ""
	}
	return name
}

// growMounted grows the filesystem if it is still mounted where it was. It is
// not kept open for that, since it could not be unmounted then.
func growMounted(m guest.Mount) error {
	at, err := unix.Open(m.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot grow the filesystem at %s: %w", m.Path, err)
	}
	defer unix.Close(at)
	var dir, device unix.Stat_t
	if err := errors.Join(unix.Fstat(at, &dir), unix.Stat(m.Device, &device)); err != nil {
		return fmt.Errorf("cannot grow the filesystem at %s: %w", m.Path, err)
	}
	if dir.Dev != device.Rdev {
		return nil
	}
	return growExt4(m.Device, at)
}
