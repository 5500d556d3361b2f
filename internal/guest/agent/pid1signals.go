package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// pid1Signals counts, in the kernel, the signals by which busybox's init is
// told to end the guest. Nothing runs and nobody wakes up until the counters
// are read. Nothing else in the guest shows which of them it was.
type pid1Signals struct {
	counters map[unix.Signal][]int // a descriptor for each processor
}

// countPid1Signals needs a kernel with tracepoints.
func countPid1Signals() (*pid1Signals, error) {
	id, err := tracepointID("signal/signal_generate")
	if err != nil {
		return nil, err
	}
	p := &pid1Signals{counters: map[unix.Signal][]int{}}
	for _, sig := range []unix.Signal{unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM} {
		for cpu := range runtime.NumCPU() {
			fd, err := countTracepoint(id, cpu, fmt.Sprintf("pid==1 && sig==%d", int(sig)))
			if err != nil {
				p.close()
				return nil, fmt.Errorf("cannot count signals to pid 1: %w", err)
			}
			p.counters[sig] = append(p.counters[sig], fd)
		}
	}
	return p, nil
}

func (p *pid1Signals) close() {
	for _, fds := range p.counters {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// action is what the signals sent so far ask for; "" if there were none.
func (p *pid1Signals) action() string {
	switch {
	case p == nil:
		return ""
	case p.sent(unix.SIGUSR1), p.sent(unix.SIGUSR2): // halt, poweroff
		return guest.ActionPowerOff
	case p.sent(unix.SIGTERM):
		return guest.ActionReboot
	}
	return ""
}

func (p *pid1Signals) sent(sig unix.Signal) bool {
	for _, fd := range p.counters[sig] {
		var count [8]byte
		n, err := unix.Read(fd, count[:])
		if err == nil && n == len(count) && binary.NativeEndian.Uint64(count[:]) > 0 {
			return true
		}
	}
	return false
}

// tracepointID reads a number from tracefs, which is mounted for nobody else
// to see.
func tracepointID(name string) (uint64, error) {
	fs, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("cannot use tracefs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return 0, fmt.Errorf("cannot use tracefs: %w", err)
	}
	top, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("cannot mount tracefs: %w", err)
	}
	defer unix.Close(top)
	fd, err := unix.Openat(top, "events/"+name+"/id", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("cannot find tracepoint %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), "id")
	defer f.Close()
	buf := make([]byte, 32)
	n, err := f.Read(buf)
	if err != nil {
		return 0, fmt.Errorf("cannot read the number of tracepoint %s: %w", name, err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(buf[:n])), 10, 64)
}

// countTracepoint counts on one processor what the filter lets through.
func countTracepoint(id uint64, cpu int, filter string) (int, error) {
	// It begins to count when it has its filter, not before.
	attr := &unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Bits: unix.PerfBitDisabled}
	attr.Size = uint32(unsafe.Sizeof(*attr))
	fd, err := unix.PerfEventOpen(attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	err = unix.IoctlSetString(fd, unix.PERF_EVENT_IOC_SET_FILTER, filter)
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}
