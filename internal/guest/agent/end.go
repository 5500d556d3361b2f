package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// defaultGrace is long enough for services that save something.
const defaultGrace = 10 * time.Second

// postShutdown only notes the wish; end acts on it when the answer has left.
// Asking again changes nothing.
func (s *server) postShutdown(sh guest.Shutdown) (guest.Ending, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := guest.Ending{Sound: soundDisks("/sys/fs/ext4")}
	if s.phase == guest.PhaseEnding {
		return answer, nil
	}
	s.phase = guest.PhaseEnding
	s.grace = defaultGrace
	if sh.GraceSeconds > 0 {
		s.grace = time.Duration(sh.GraceSeconds) * time.Second
	}
	return answer, nil
}

// soundDisks reports whether the kernel has noted no error on any mounted ext4,
// in this run or an earlier one: the count is kept on the disk until e2fsck
// clears it. Where it cannot be read, there may be one.
func soundDisks(sysfs string) bool {
	counts, err := filepath.Glob(filepath.Join(sysfs, "*", "errors_count"))
	if err != nil || len(counts) == 0 {
		return false
	}
	for _, path := range counts {
		raw, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(raw)) != "0" {
			return false
		}
	}
	return true
}

// end makes the guest reboot, if that was asked for: by pid 1 where that is
// the agent, else by the image's init, and by force after the grace.
func (s *server) end() {
	s.mu.Lock()
	ending, imageInit, grace := s.phase == guest.PhaseEnding, s.imageInit, s.grace
	s.mu.Unlock()
	if !ending {
		return
	}
	s.endOnce.Do(func() {
		unix.Sync()
		if !imageInit {
			if err := send(s.link, orderEnd+strconv.Itoa(int(grace.Seconds()))); err == nil {
				return
			}
		} else {
			s.askInit(grace)
		}
		s.log.Warn("the guest did not end by itself, rebooting")
		reboot(s.log)
	})
}

// askInit asks again every second, since a signal is lost on an init that has
// no handler for it yet, as in its first moments. It returns when the grace is
// over; normally this process is ended before that.
func (s *server) askInit(grace time.Duration) {
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		sig := rebootSignal(initProgram())
		if err := unix.Kill(1, sig); err != nil {
			s.log.Warn("cannot signal the image's init", "err", err)
		}
		select {
		case <-deadline.C:
			return
		case <-again.C:
		}
	}
}

// rebootSignal is what makes an init reboot. Firecracker ends on a reboot
// only: after a power-off it idles.
func rebootSignal(program string) unix.Signal {
	switch program {
	case "systemd":
		return unix.Signal(34 + 5) // SIGRTMIN+5: starts reboot.target
	case "busybox":
		return unix.SIGTERM
	default:
		// Ctrl-Alt-Del. sysvinit, OpenRC, runit, dinit and finit reboot on
		// it, while SIGTERM makes some of them halt.
		return unix.SIGINT
	}
}

// initProgram is the file name of what runs as pid 1.
func initProgram() string {
	exe, err := os.Readlink("/proc/1/exe")
	if err != nil {
		return initName()
	}
	return filepath.Base(exe)
}

// initName is what pid 1 calls itself, at most 15 characters.
func initName() string {
	comm, err := os.ReadFile("/proc/1/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(comm))
}

// reboot makes the disks clean, as far as that goes, and ends the guest. It
// does not return.
func reboot(log *slog.Logger) {
	unix.Sync()
	for _, point := range diskMounts() {
		if err := unix.Mount("", point, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil && !errors.Is(err, unix.EINVAL) {
			log.Warn("cannot make a filesystem read-only", "path", point, "err", err) // it is synced
		}
	}
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	log.Error("cannot reboot", "err", err)
	os.Exit(1) // for pid 1 this is a kernel panic, which reboots too
}

// diskMounts are the mount points of disks, latest first, and the root.
func diskMounts() []string {
	points := []string{"/"}
	raw, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return points
	}
	// How the kernel writes what would break its lines.
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[0], "/dev/") && f[1] != "/" {
			points = append(points, unescape.Replace(f[1]))
		}
	}
	slices.Reverse(points)
	return points
}
