package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Start boots the machine; it is fine if it runs already.
func (m *Machine) Start(ctx context.Context, p Progress) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return m.start(ctx, p)
}

func (m *Machine) start(ctx context.Context, p Progress) error {
	r, err := m.readRecord()
	if err != nil {
		return err
	}
	if _, running, err := m.running(); err != nil || running {
		return err
	}
	accel, err := pickAccel(ctx, m.Dir, p)
	if err != nil {
		return err
	}
	p.step("booting machine %q (%s)", m.Name, accel)
	if _, err := r.guest(m.Dir, accel).boot(ctx); err != nil {
		return err
	}
	return nil
}

// running returns the record of the machine's QEMU, if that runs.
func (m *Machine) running() (run, bool, error) {
	r, ok, err := readRun(m.Dir)
	if err != nil || !ok {
		return run{}, false, err
	}
	pidfd, alive, err := r.process(m.Dir)
	if err != nil || !alive {
		return run{}, false, err
	}
	return r, true, unix.Close(pidfd)
}

// Stop powers the machine off; it is fine if it does not run.
func (m *Machine) Stop(ctx context.Context, p Progress) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := m.readRecord()
	if err != nil {
		return err
	}
	r, running, err := m.running()
	if err != nil || !running {
		return err
	}
	p.step("stopping machine %q", m.Name)
	return rec.guest(m.Dir, r.Accel).shutDown(ctx, m.poweroff)
}

// poweroff is the command that makes the guest power itself off.
func (m *Machine) poweroff(ctx context.Context) *exec.Cmd {
	return m.SSHCommand(ctx, Root, false, "systemctl", "--no-block", "poweroff")
}

// Remove deletes the machine and all that is in it, running or not; it is fine
// if there is none.
func (m *Machine) Remove(context.Context) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := killRun(m.Dir); err != nil {
		return err
	}
	// First out of its name, at once; then piece by piece.
	gone := filepath.Join(filepath.Dir(m.Dir), "."+m.Name+".old")
	removeTree(gone)
	if err := os.Rename(m.Dir, gone); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove machine %q: %w", m.Name, err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("cannot remove what machine %q left: %w", m.Name, err)
	}
	return nil
}
