package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/store"
)

const (
	netDir   = "/sys/class/net/"
	blockDir = "/sys/dev/block/"
)

// errEnded means that a VM's cgroup has gone.
var errEnded = errors.New("it has ended")

// Stats tells what the VMM of a running or paused VM has taken so far.
func (m *Manager) Stats(ctx context.Context, ref string) (api.Stats, error) {
	v, err := m.Get(ctx, ref)
	if err != nil {
		return api.Stats{}, err
	}
	if !alive(v) {
		return api.Stats{}, notRunning("cannot measure VM %q", v)
	}
	s, err := readStats(v.ID, cgroupDir+UnitOf(v.ID), netDir, blockDir)
	if errors.Is(err, errEnded) {
		return s, m.hasEnded(ctx, v)
	} else if err != nil {
		return s, fmt.Errorf("cannot measure VM %q: %w", v.Name, err)
	}
	s.Name = v.Name
	return s, nil
}

func (m *Manager) hasEnded(ctx context.Context, v *store.VM) error {
	now, err := m.Get(ctx, v.ID)
	if err != nil {
		return err
	}
	if alive(now) { // the kernel knows a moment before the record
		return api.Problemf(409, api.CodeNotRunning, "cannot measure VM %q: it has just ended", v.Name)
	}
	return notRunning("cannot measure VM %q", now)
}

// readStats reads the figures of one VM. All of one cgroup are read through one
// descriptor, so that they cannot be of two runs.
func readStats(id, cgroup, netDir, blockDir string) (api.Stats, error) {
	s := api.Stats{ID: id, At: now()}
	dir, err := unix.Open(cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return s, orEnded(err)
	}
	defer unix.Close(dir)
	cpu, cpuErr := readAt(dir, "cpu.stat")
	memory, memErr := readAt(dir, "memory.current")
	limit, limitErr := readAt(dir, "memory.max")
	tasks, tasksErr := readAt(dir, "pids.current")
	disks, ioErr := readAt(dir, "io.stat")
	if err := errors.Join(cpuErr, memErr, limitErr, tasksErr); err != nil {
		return s, orEnded(err)
	}
	if ioErr != nil && !errors.Is(ioErr, fs.ErrNotExist) { // not there where the host does not count it
		return s, orEnded(ioErr)
	}
	s.CPUMicros = field(cpu, "usage_usec")
	s.MemoryBytes, s.MemoryLimit = number(memory), number(limit) // "max" counts as 0: none
	s.Tasks = int(number(tasks))
	s.ReadBytes, s.WriteBytes = diskBytes(disks, id, blockDir)
	// What the host's end of the wire receives is what the guest has sent.
	s.TxBytes = counter(netDir + "tap" + id + "/statistics/rx_bytes")
	s.RxBytes = counter(netDir + "tap" + id + "/statistics/tx_bytes")
	return s, nil
}

// orEnded tells the end of a cgroup, which a read can meet at any point, from
// other errors.
func orEnded(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return errEnded
	}
	return err
}

// maxFile bounds a file of the kernel; io.stat has a line for every device.
const maxFile = 256 << 10

func readAt(dir int, name string) (string, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(raw), err
}

// diskBytes sums up the VM's own disks. A byte passes several devices on its
// way to the host's, and io.stat has it at each; only the first is the VM's.
func diskBytes(stat, id, blockDir string) (read, written int64) {
	for line := range strings.Lines(stat) {
		device, rest, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.ContainsRune(device, '/') {
			continue
		}
		name, err := os.ReadFile(blockDir + device + "/dm/name")
		if err != nil || !strings.HasSuffix(strings.TrimSpace(string(name)), id) {
			continue // no device-mapper's, or one that has just gone
		}
		read += field(strings.ReplaceAll(rest, "=", " "), "rbytes")
		written += field(strings.ReplaceAll(rest, "=", " "), "wbytes")
	}
	return read, written
}

// field is the number behind a word.
func field(text, name string) int64 {
	words := strings.Fields(text)
	for i, w := range words[:max(0, len(words)-1)] {
		if w == name {
			return number(words[i+1])
		}
	}
	return 0
}

func number(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// counter reads a statistic of a network device; 0 if there is none.
func counter(path string) int64 {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	return number(string(raw))
}

// WatchStats tells the figures now and then every interval until tell fails,
// ctx ends, or the VM does: then it says so. The kernel's figures announce
// nothing, hence the clock.
func (m *Manager) WatchStats(ctx context.Context, ref string, every time.Duration, tell func(api.Stats) error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		s, err := m.Stats(ctx, ref)
		if err == nil {
			err = tell(s)
		}
		if err != nil {
			return err
		}
		ref = s.ID // it may be renamed meanwhile
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
