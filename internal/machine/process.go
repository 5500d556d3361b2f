package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const runFile = "run.json"

// run is the record of the QEMU process that runs a machine.
type run struct {
	PID int `json:"pid"`
	// Started is the process's start in clock ticks since the boot named by
	// BootID. Both together tell it from a later process of the same pid.
	Started   string    `json:"started"`
	BootID    string    `json:"boot_id"`
	Port      int       `json:"port"`
	Accel     string    `json:"accel"`
	StartedAt time.Time `json:"started_at"`
}

// newRun describes the process pid, which the caller has just started.
func newRun(pid, port int, accel string) (run, error) {
	started, err := startOf(pid)
	if err != nil {
		return run{}, err
	}
	boot, err := bootID()
	return run{PID: pid, Started: started, BootID: boot, Port: port, Accel: accel, StartedAt: time.Now().UTC().Truncate(time.Second)}, err
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// startOf returns field 22 of /proc/PID/stat. The second field is the
// program's name in brackets and may itself hold brackets and spaces.
func startOf(pid int) (string, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("cannot read /proc/%d/stat", pid)
	}
	if fields[0] == "Z" {
		return "", fs.ErrNotExist // it has ended and only waits to be reaped
	}
	return fields[19], nil
}

// readRun returns the record in dir; ok is false where there is none.
func readRun(dir string) (r run, ok bool, err error) {
	text, err := os.ReadFile(filepath.Join(dir, runFile))
	if errors.Is(err, fs.ErrNotExist) {
		return run{}, false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return run{}, false, fmt.Errorf("cannot read the record of the running machine: %w", err)
	}
	return r, true, nil
}

// process returns a pidfd of the process r describes, or ok=false if that has
// ended. The descriptor is opened before the process is looked at, so what was
// looked at is what gets signals.
func (r run) process(dir string) (pidfd int, ok bool, err error) {
	if boot, err := bootID(); err != nil || boot != r.BootID {
		return -1, false, err
	}
	pidfd, err = unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, false, nil
	}
	if err != nil {
		return -1, false, fmt.Errorf("cannot look at process %d: %w", r.PID, err)
	}
	started, err := startOf(r.PID)
	cmdline, cmdErr := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", r.PID))
	if err != nil || cmdErr != nil || started != r.Started || !isQEMUOf(cmdline, dir) {
		_ = unix.Close(pidfd)
		return -1, false, nil
	}
	return pidfd, true, nil
}

// isQEMUOf tells whether a command line is the one startQEMU wrote for dir.
func isQEMUOf(cmdline []byte, dir string) bool {
	words := strings.Split(string(cmdline), "\x00")
	if !strings.HasPrefix(filepath.Base(words[0]), "qemu-system-") {
		return false
	}
	for i, word := range words[:len(words)-1] {
		if word == "-name" && words[i+1] == guestName(dir) {
			return true
		}
	}
	return false
}

// guestName marks the QEMU process of the machine in dir for people and for us.
func guestName(dir string) string {
	return "banger-machine-" + strings.TrimPrefix(filepath.Base(dir), ".")
}

// waitEnd waits until the process behind pidfd has ended.
func waitEnd(ctx context.Context, pidfd int) error {
	// poll cannot be interrupted by ctx, so it wakes now and then to look.
	const look = 100 // ms
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, look)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("cannot wait for QEMU: %w", err)
		case err == nil && n > 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}

// killRun ends the machine's QEMU at once, waits until it is gone and forgets
// it. It is fine if there is none.
func killRun(dir string) error {
	r, ok, err := readRun(dir)
	if err != nil || !ok {
		return err
	}
	pidfd, alive, err := r.process(dir)
	if err != nil {
		return err
	}
	if alive {
		defer unix.Close(pidfd)
		if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("cannot stop QEMU: %w", err)
		}
		// SIGKILL is obeyed; only a QEMU stuck in the kernel takes longer.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := waitEnd(ctx, pidfd); err != nil {
			return err
		}
	}
	// A shared connection ends by itself, but may take its socket's name along
	// only later.
	forget, err := filepath.Glob(filepath.Join(dir, "ssh-*"))
	if err != nil {
		return err
	}
	for _, path := range append(forget, filepath.Join(dir, runFile)) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot forget the machine's process: %w", err)
		}
	}
	return nil
}
