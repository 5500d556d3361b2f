package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/guest"
	"banger/internal/paths"
)

// Loop is a loop device on a file of ours.
type Loop struct {
	Name, File string
	VM         string // whose file it is; empty for an image
}

// settle is how long a loop device may be without a disk on it while a VM starts
// or ends: the kernel frees it with the disk.
const settle = time.Second

// IdleLoops finds loop devices that no disk of a VM holds, now and after a while.
// With a disk they are no leftover beside that.
func (h Host) IdleLoops(ctx context.Context) []Loop {
	before := h.idleLoops()
	if len(before) == 0 {
		return nil
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
	}
	now := h.idleLoops()
	return slices.DeleteFunc(before, func(l Loop) bool { return !slices.Contains(now, l) })
}

func (h Host) idleLoops() (all []Loop) {
	found, _ := filepath.Glob(h.at("/sys/block/loop*/loop/backing_file")) // the pattern is good
	for _, path := range found {
		raw, err := os.ReadFile(path)
		if err != nil { // gone meanwhile
			continue
		}
		device := filepath.Dir(filepath.Dir(path))
		l, ours := loopOn(filepath.Base(device), strings.TrimSuffix(string(raw), "\n"))
		if !ours {
			continue
		}
		if holders, err := os.ReadDir(device + "/holders"); err == nil && len(holders) == 0 {
			all = append(all, l)
		}
	}
	return all
}

// loopOn tells whether a file is ours. When the helper that made the device has
// gone, and its view of the filesystem with it, the kernel tells a path that
// begins at the state directory.
func loopOn(device, file string) (l Loop, ours bool) {
	file = strings.TrimSuffix(file, " (deleted)")
	l = Loop{Name: device, File: file}
	inside, whole := strings.CutPrefix(file, paths.StateDir+"/")
	if !whole {
		inside = strings.TrimPrefix(file, "/")
	}
	parts := strings.Split(inside, "/")
	known := len(parts) == 3 && parts[0] == "images" && guest.ValidID(parts[1]) && parts[2] == "rootfs.ext4"
	if id := strings.TrimPrefix(parts[min(1, len(parts)-1)], doomed); parts[0] == "vms" && len(parts) > 2 && guest.ValidID(id) {
		l.VM, known = id, true
	}
	return l, whole || known
}

// ForgetLoops drops those of VMs that exist.
func ForgetLoops(all []Loop, known []string) []Loop {
	return slices.DeleteFunc(all, func(l Loop) bool { return slices.Contains(known, l.VM) })
}

func judgeLoops(all []Loop) Finding {
	var found, devices []string
	for _, l := range all {
		found = append(found, fmt.Sprintf("%s on %q", l.Name, l.File))
		devices = append(devices, "/dev/"+l.Name)
	}
	return Warn("sudo losetup -d "+strings.Join(devices, " ")+", unless somebody has mounted them", "loop devices that no VM uses lie on files of banger: %s", list(found))
}
