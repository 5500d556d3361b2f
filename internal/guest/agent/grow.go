package agent

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/guest"
)

// watchVolumes makes filesystems larger when the host has made their disks
// larger under the running guest. The kernel tells about that as about every
// change of a device; the host may also ask, but the kernel may hear of the new
// size later than the agent of the wish.
func (s *server) watchVolumes(mounts []guest.Mount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range mounts {
		if m.Grow {
			s.growing = append(s.growing, m)
		}
	}
	if len(s.growing) == 0 {
		return
	}
	byName := map[string]guest.Mount{}
	for _, m := range s.growing {
		byName[filepath.Base(m.Device)] = m
	}
	go func() {
		err := onResize(func(disk string) {
			if m, ok := byName[disk]; ok {
				if err := s.growMounted(m); err != nil {
					s.log.Warn(err.Error())
				}
			}
		})
		s.log.Warn("disks that grow will not be noticed", "err", err)
	}()
}

func (s *server) postGrow(g guest.Grow) (struct{}, error) {
	s.mu.Lock()
	i := slices.IndexFunc(s.growing, func(m guest.Mount) bool { return m.Path == g.Path })
	if i < 0 {
		s.mu.Unlock()
		return struct{}{}, api.NotFound("nothing that grows is mounted at %.200q", g.Path)
	}
	m := s.growing[i]
	s.mu.Unlock()
	return struct{}{}, s.growMounted(m)
}

// onResize calls f for each disk that changes its size. It returns when it
// cannot hear the kernel.
func onResize(f func(disk string)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return err
	}
	buf := make([]byte, 8192)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) { // the host may ask for what is lost
			continue
		}
		if err != nil {
			return err
		}
		if sender, ok := from.(*unix.SockaddrNetlink); ok && sender.Pid == 0 { // only the kernel's word counts
			if disk := resizedDisk(buf[:n]); disk != "" {
				f(disk)
			}
		}
	}
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
func (s *server) growMounted(m guest.Mount) error {
	s.resizing.Lock() // the kernel does one resize at a time
	defer s.resizing.Unlock()
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
