package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/guest"
	"banger/internal/store"
)

// Delete removes a VM with its disk. A running one is killed, but only with
// force.
func (m *Manager) Delete(ctx context.Context, id string, force bool, rep Reporter) error {
	if force {
		if err := m.cutShort(ctx, id); err != nil {
			return err
		}
	}
	return m.locked(ctx, id, func(v *store.VM) error {
		if alive(v) && !force {
			return api.Conflict("cannot delete VM %q: it is %s", v.Name, v.State).
				WithHint("stop it first with `banger vm stop %s`, or give --force", v.Name)
		}
		return m.remove(ctx, v, rep)
	})
}

func (m *Manager) remove(ctx context.Context, v *store.VM, rep Reporter) error {
	ctx = context.WithoutCancel(ctx) // half a delete is no use to anybody
	var err error
	switch v.State {
	case api.StateRunning, api.StatePaused:
		err = m.removeRunning(ctx, v, rep)
	case api.StateStarting, api.StateStopping, api.StateFailed:
		if err := m.clear(ctx, v); err != nil {
			return err
		}
		fallthrough
	default:
		rep.Stage("remove", "removing the disk")
		err = m.erase(ctx, v)
	}
	if err != nil && !errors.Is(err, errDying) {
		return err
	}
	m.leaveGuest(v.ID)
	m.guests.forget(v.ID)
	m.activity.forget(v.ID)
	m.forgetCleanEnd(v.ID)
	_ = removeMark(m.pauseMark(v.ID)) // one that stays is of no VM, until the host's next boot
	v.State, v.Reason = api.StateDeleted, ""
	m.events.tell(api.EventState, v)
	return err
}

// doomed marks the directory of a VM whose delete has begun. The name is the
// record of that: it is changed whole or not at all, and needs no room on a full
// disk, which a delete may be there to empty. bangerd's next start completes
// what was cut off.
const doomed = ".deleted-"

func (m *Manager) doomedDir(id string) string { return filepath.Join(m.StateDir, "vms", doomed+id) }

// removeRunning kills a VMM and removes the record while it dies, so that little
// is left to do when it has ended and systemd cleans up behind it. The rest
// follows behind the answer. The new name of the directory is also the intent of
// the kill: one write to the store less on the way.
func (m *Manager) removeRunning(ctx context.Context, v *store.VM, rep Reporter) error {
	ended, done := m.watchEnd(v.ID)
	dir, aside := m.dir(v), m.doomedDir(v.ID)
	err := os.Rename(dir, aside)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // by a delete that bangerd's end cut off
		done()
		return fmt.Errorf("cannot remove the directory of VM %q: %w", v.Name, err)
	}
	rep.Stage("kill", "stopping firecracker")
	gone, err := m.beginKill(ctx, v.ID, ended)
	if err != nil {
		done()
		return errors.Join(m.notEnded(ctx, v, v.State, err), renameBack(aside, dir))
	}
	// Nothing calls it back any more.
	recordErr := m.removeRecord(ctx, v)
	err = awaitDeath(ctx, gone)
	if recordErr == nil {
		m.sweepBehind(v.ID, end{gone, ended.verdict}, done)
		if err != nil {
			return fmt.Errorf("VM %q is deleted, but its %w", v.Name, err)
		}
		return nil
	}
	done()
	if err != nil { // bangerd's next start, or the next delete, goes on
		return errors.Join(recordErr, err, m.setState(ctx, v, api.StateStopping, ""))
	}
	// The disk is too full for it, say: then its room is made first.
	m.Log.WarnContext(ctx, "cannot remove the record before the disks", "vm", v.ID, "error", recordErr)
	if err := m.stopped(ctx, v, ""); err != nil {
		m.Log.WarnContext(ctx, "cannot record the end of a VM that is being deleted", "vm", v.ID, "error", err)
	}
	rep.Stage("remove", "removing the disk")
	return errors.Join(renameBack(aside, dir), m.erase(ctx, v))
}

// removeRecord is for a VM whose directory is marked and whose VMM is dying. What
// is left of it is then the sweep's.
func (m *Manager) removeRecord(ctx context.Context, v *store.VM) error {
	if err := m.cleanupCapabilities(ctx, v); err != nil {
		return err
	}
	// The new name is to be on the disk before the record goes.
	if err := syncDir(filepath.Join(m.StateDir, "vms")); err != nil {
		return err
	}
	if err := fault.Point(ctx, "delete.aside"); err != nil {
		return err
	}
	m.sweeps.begin(v.ID)
	err := m.Store.DeleteVM(ctx, v.ID)
	if err != nil {
		m.sweeps.end(v.ID)
	}
	return err
}

// sweepBehind sweeps when systemd has begun to clean up: before that there is
// nothing to wait for in the helper, and to ask would only keep the host from it.
func (m *Manager) sweepBehind(id string, ended end, done func()) {
	m.tasks.Go(func() {
		if _, err := readExit(m.ExitDir, id); ended.gone != nil && err != nil {
			late := time.NewTimer(cleanUpTime)
			select {
			case <-ended.verdict:
			case <-late.C:
			case <-m.ctx.Done():
			}
			late.Stop()
		}
		done()
		m.sweepUntilDone(id)
	})
}

// cleanUpTime is how long systemd may take to begin its clean-up behind a VMM.
const cleanUpTime = 5 * time.Second

// renameBack is fine if there is nothing to rename.
func renameBack(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncDir(filepath.Dir(to)) // else a loss of power brings the delete back
}

// syncDir is fine if there is no such directory.
func syncDir(path string) error {
	d, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Pauses between two attempts to sweep.
const (
	sweepPause    = 100 * time.Millisecond
	sweepMaxPause = time.Minute
)

// sweepUntilDone tries again until it is done or bangerd ends, whose next start
// goes on: nobody is left who could be told.
func (m *Manager) sweepUntilDone(id string) {
	defer m.sweeps.end(id)
	for pause := sweepPause; ; pause = min(2*pause, sweepMaxPause) {
		err := m.sweep(m.ctx, id)
		if err == nil || m.ctx.Err() != nil {
			return
		}
		m.Log.Error("cannot remove what is left of a VM that is deleted", "vm", id, "again_in", pause, "error", err)
		select {
		case <-time.After(pause):
		case <-m.ctx.Done():
			return
		}
	}
}

// sweeps are the VMs without a record of which something may be left: those that
// are swept now, and for a moment those that were, since whoever compares the host
// with the records looks at one after the other.
type sweeps struct {
	mu  sync.Mutex
	ids map[string]int
}

const sweepMemory = time.Minute

func (s *sweeps) begin(id string) { s.add(id, 1) }

func (s *sweeps) end(id string) { time.AfterFunc(sweepMemory, func() { s.add(id, -1) }) }

func (s *sweeps) add(id string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = map[string]int{}
	}
	if s.ids[id] += n; s.ids[id] == 0 {
		delete(s.ids, id)
	}
}

// Sweeping lists the VMs whose delete was answered and may not have ended.
func (m *Manager) Sweeping() []string {
	m.sweeps.mu.Lock()
	defer m.sweeps.mu.Unlock()
	return slices.Collect(maps.Keys(m.sweeps.ids))
}

// sweep removes what is left of a VM without a record; idempotent.
func (m *Manager) sweep(ctx context.Context, id string) error {
	err := m.Helper.Release(ctx, id)
	if err == nil {
		err = fault.Point(ctx, "delete.released")
	}
	if err == nil {
		err = emptyDir(m.doomedDir(id))
	}
	if err == nil {
		err = fault.Point(ctx, "delete.files")
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(m.doomedDir(id))
}

// erase removes all that is kept of a VM which holds nothing in the kernel. A
// failure before the first disk is removed leaves it as it was.
func (m *Manager) erase(ctx context.Context, v *store.VM) error {
	dir, aside := m.dir(v), m.doomedDir(v.ID)
	err := os.Rename(dir, aside)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // never started, or by a delete that failed
		return fmt.Errorf("cannot remove the directory of VM %q: %w", v.Name, err)
	}
	moved := err == nil // else by an earlier delete, which may have begun to remove disks
	if err := m.release(ctx, v); err != nil {
		if moved {
			err = errors.Join(err, os.Rename(aside, dir))
		}
		return fmt.Errorf("cannot delete VM %q: %w", v.Name, err)
	}
	// The disks before the record, which may need their room.
	err = emptyDir(aside)
	if err == nil {
		err = fault.Point(ctx, "delete.files")
	}
	if err == nil {
		err = m.Store.DeleteVM(ctx, v.ID)
	}
	if err != nil {
		err = fmt.Errorf("cannot delete VM %q: %w", v.Name, err)
		return errors.Join(err, m.setState(ctx, v, api.StateFailed, "its disks are gone, but the rest of it could not be deleted"))
	}
	if err := os.RemoveAll(aside); err != nil {
		m.Log.WarnContext(ctx, "cannot remove the directory of a VM that is deleted", "vm", v.ID, "error", err)
	}
	return nil
}

func (m *Manager) release(ctx context.Context, v *store.VM) error {
	if err := fault.Point(ctx, "delete.aside"); err != nil {
		return err
	}
	if !v.StartedAt.IsZero() {
		if err := m.Helper.Release(ctx, v.ID); err != nil {
			return err
		}
	}
	return fault.Point(ctx, "delete.released")
}

// emptyDir removes what is in a directory; it is fine if there is none.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// finishDeletes completes the deletes that bangerd's end cut off.
func (m *Manager) finishDeletes(ctx context.Context) {
	left, err := filepath.Glob(m.doomedDir("*"))
	if err != nil {
		m.Log.ErrorContext(ctx, "cannot look for deletes that were cut off", "error", err)
	}
	for _, dir := range left {
		id := strings.TrimPrefix(filepath.Base(dir), doomed)
		if !guest.ValidID(id) {
			continue
		}
		v, err := m.Store.VMByID(ctx, id)
		switch {
		case errors.Is(err, store.ErrNotFound):
			m.sweeps.begin(id)
			m.tasks.Go(func() { m.sweepUntilDone(id) })
			continue
		case err == nil:
			m.Log.InfoContext(ctx, "completing the delete of a VM", "vm", v.ID, "name", v.Name)
			err = m.remove(ctx, v, discard{})
		}
		if err != nil {
			m.Log.ErrorContext(ctx, "cannot complete the delete of a VM", "vm", id, "error", err)
		}
	}
}
