package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/helper"
)

// end is what tells that a VMM has ended, in two ways.
type end struct {
	gone    <-chan struct{} // nil if it cannot be told so
	verdict <-chan helper.Exit
}

// watchEnd watches a VMM that runs, until the function is called.
func (m *Manager) watchEnd(id string) (end, func()) {
	verdict, done := m.exits.wait(id)
	processes, stop, err := gone(cgroupDir + UnitOf(id))
	if err != nil { // the slower way is left
		if !errors.Is(err, fs.ErrNotExist) {
			m.Log.Warn("cannot watch the VMM's processes", "vm", id, "error", err)
		}
		return end{verdict: verdict}, done
	}
	return end{processes, verdict}, func() { done(); stop() }
}

// gone returns a channel that is closed when all processes that are in the cgroup
// now have ended, and a function that ends the waiting. The kernel tells that at
// once; systemd's verdict comes when it has also cleaned up behind them.
func gone(cgroup string) (<-chan struct{}, func(), error) {
	raw, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return nil, nil, err
	}
	var all []*os.File
	stop := func() {
		for _, f := range all {
			_ = f.Close()
		}
	}
	for word := range strings.FieldsSeq(string(raw)) {
		f, err := openProcess(word)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			stop()
			return nil, nil, fmt.Errorf("cannot watch process %s: %w", word, err)
		}
		all = append(all, f)
	}
	ended := make(chan struct{})
	go func() {
		for _, f := range all {
			if awaitProcess(f) != nil {
				return // stopped
			}
		}
		close(ended)
	}()
	return ended, stop, nil
}

func openProcess(word string) (*os.File, error) {
	pid, err := strconv.Atoi(word)
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "process "+word), nil
}

// awaitProcess waits without holding a thread.
func awaitProcess(pidfd *os.File) error {
	c, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var pollErr error
	err = c.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		var n int
		if n, pollErr = unix.Poll(p, 0); errors.Is(pollErr, unix.EINTR) {
			pollErr = nil
			return false
		}
		return n > 0 || pollErr != nil
	})
	return errors.Join(err, pollErr)
}
