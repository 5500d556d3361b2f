package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/helper"
	"banger/internal/store"
)

// cgroupDir is where systemd keeps the units of VMs (Slice=banger.slice).
const cgroupDir = "/sys/fs/cgroup/banger.slice/"

// reconcile compares the records with the host after bangerd was away: VMs
// that run are adopted, those that ended are told of, what was caught in the
// middle of a change is cleared and marked, and units that should not run are
// ended. Nothing is guessed.
func (m *Manager) reconcile(ctx context.Context) error {
	m.finishDeletes(ctx)
	vs, err := m.Store.ActiveVMs(ctx)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, v := range vs {
		wanted[v.ID] = true
		if err := m.reconcileOne(ctx, v); err != nil {
			// One VM in trouble must not keep the others from being served.
			m.Log.ErrorContext(ctx, "cannot reconcile", "vm", v.ID, "name", v.Name, "error", err)
		}
	}
	if err := m.reapplyNetwork(ctx, vs); err != nil {
		m.Log.ErrorContext(ctx, "cannot apply the VMs' network policies", "error", err)
	}
	units, err := filepath.Glob(cgroupDir + UnitOf("*"))
	if err != nil {
		return err
	}
	for _, unit := range units {
		id, ok := strings.CutPrefix(strings.TrimSuffix(filepath.Base(unit), ".service"), "banger-vm-")
		if !ok || wanted[id] || !guest.ValidID(id) {
			continue
		}
		m.Log.WarnContext(ctx, "ending a VMM that no record wants", "vm", id)
		if err := m.clear(ctx, &store.VM{ID: id}); err != nil {
			m.Log.ErrorContext(ctx, "cannot end it", "vm", id, "error", err)
		}
	}
	return nil
}

func (m *Manager) reconcileOne(ctx context.Context, v *store.VM) error {
	if v.HostBoot != m.boot { // only files can be left
		// What cannot be cleared now, the next start or delete clears.
		err := m.Helper.Cleanup(ctx, v.ID)
		if v.State == api.StateStarting {
			return errors.Join(err, m.setState(ctx, v, api.StateFailed, "the host was restarted while the VM was starting"))
		}
		return errors.Join(err, m.setState(ctx, v, api.StateStopped, "the host was restarted"))
	}
	runs, err := unitRuns(v.ID)
	if err != nil {
		return err
	}
	// A record of this run's end exists before its unit is empty: the clean-up
	// that writes it runs in the unit.
	e, err := readExit(m.ExitDir, v.ID)
	over := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case alive(v) && over:
		m.exited(e) // it may have to be started again
		return nil
	case alive(v) && runs:
		m.Log.InfoContext(ctx, "adopted", "vm", v.ID, "name", v.Name)
		return m.adopt(ctx, v)
	case alive(v):
		return m.failed(ctx, v, "firecracker ended while bangerd was not running")
	case v.State == api.StateStopping && runs && !over:
		m.tasks.Go(func() { m.finishStop(v.ID) })
		return nil
	}
	if err := m.clear(ctx, v); err != nil {
		return err
	}
	if v.State == api.StateStopping {
		return m.setState(ctx, v, api.StateStopped, "")
	}
	return m.setState(ctx, v, api.StateFailed, "bangerd ended while the VM was starting")
}

// adopt makes a VM that outlived the last bangerd one of this one's.
func (m *Manager) adopt(ctx context.Context, v *store.VM) error {
	m.touch(v.ID) // nobody knows how long it was idle
	m.attend(v)
	// The policies of all are told in one request, see reconcile.
	return dnsName{m: m}.postStart(ctx, v)
}

// reapplyNetwork tells the helper the policies of all VMs that have a VMM: it
// may have been away as well, and whatever else has a policy has ended.
func (m *Manager) reapplyNetwork(ctx context.Context, vs []*store.VM) error {
	r := helper.NetworkRequest{Whole: true, Guests: []helper.GuestNetwork{}}
	for _, v := range vs {
		if alive(v) || v.State == api.StateStopping { // its guest may still need it
			r.Guests = append(r.Guests, guestNetwork(v))
		}
	}
	if len(r.Guests) == 0 {
		return nil // the bridge comes with the first start
	}
	return m.Helper.ApplyNetwork(ctx, r)
}

// lateStop is how long a guest that was asked to end before bangerd restarted
// gets until it is killed.
const lateStop = time.Minute

// finishStop goes on with a stop that bangerd's end cut off.
func (m *Manager) finishStop(id string) {
	ended, done := m.watchEnd(id)
	defer done()
	err := m.locked(m.ctx, id, func(v *store.VM) error {
		if v.State != api.StateStopping {
			return nil
		}
		runs, err := unitRuns(id)
		if err == nil && runs { // asked or not, paused or not: asking again changes nothing
			if err = m.wake(m.ctx, v); err == nil {
				agent := m.jailOf(v).agent()
				defer agent.Close()
				err = m.shutdownGuest(m.ctx, v, agent, ended, lateStop)
			}
		}
		if errors.Is(err, ErrEnding) {
			return nil // bangerd ends again, and its record still says stopping
		}
		if err := m.clear(context.WithoutCancel(m.ctx), v); err != nil {
			return err
		}
		return m.stopped(context.WithoutCancel(m.ctx), v, "")
	})
	if err != nil && m.ctx.Err() == nil {
		m.Log.Error("cannot finish a stop", "vm", id, "error", err)
	}
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

// unitPID is the VMM's process, 0 if it cannot be told.
func unitPID(id string) int {
	raw, err := os.ReadFile(cgroupDir + UnitOf(id) + "/cgroup.procs")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	pid, _ := strconv.Atoi(first)
	return pid
}
