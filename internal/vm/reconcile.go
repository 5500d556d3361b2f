package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"banger/api"
	"banger/internal/store"
)

// cgroupDir is where systemd keeps the units of VMs (Slice=banger.slice).
const cgroupDir = "/sys/fs/cgroup/banger.slice/"

// reconcile compares the records with the host after bangerd was away: VMs
// that run are adopted, those that ended are told of, and what was caught in
// the middle of a change is cleared and marked. Nothing is guessed.
func (m *Manager) reconcile(ctx context.Context) error {
	vs, err := m.Store.ActiveVMs(ctx)
	if err != nil {
		return err
	}
	for _, v := range vs {
		if err := m.reconcileOne(ctx, v); err != nil {
			// One VM in trouble must not keep the others from being served.
			m.Log.ErrorContext(ctx, "cannot reconcile", "vm", v.ID, "name", v.Name, "error", err)
		}
	}
	return nil
}

func (m *Manager) reconcileOne(ctx context.Context, v *store.VM) error {
	runs, err := unitRuns(v.ID)
	if err != nil {
		return err
	}
	switch {
	case v.State == api.StateRunning && runs:
		m.Log.InfoContext(ctx, "adopted", "vm", v.ID, "name", v.Name)
		return nil
	case v.State == api.StateRunning && v.HostBoot != m.boot:
		return m.setState(ctx, v, api.StateStopped, "the host was restarted")
	case v.State == api.StateRunning:
		e, err := readExit(m.ExitDir, v.ID)
		if errors.Is(err, fs.ErrNotExist) {
			return m.setState(ctx, v, api.StateFailed, "firecracker ended while bangerd was not running")
		} else if err != nil {
			return err
		}
		return m.ended(ctx, v, e)
	}
	// starting or stopping: bangerd ended in the middle.
	if v.HostBoot == m.boot {
		if err := m.clear(ctx, v); err != nil {
			return err
		}
	}
	if v.State == api.StateStopping {
		return m.setState(ctx, v, api.StateStopped, "")
	}
	return m.setState(ctx, v, api.StateFailed, "bangerd ended while the VM was starting")
}

// unitRuns reports whether the VM's unit has a process.
func unitRuns(id string) (bool, error) {
	raw, err := os.ReadFile(cgroupDir + UnitOf(id) + "/cgroup.events")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot see whether %s runs: %w", UnitOf(id), err)
	}
	return strings.Contains(string(raw), "populated 1"), nil
}
