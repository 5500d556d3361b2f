package vm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/store"
)

// pausedForSpace is why a VM is paused that nobody paused; it is also how such
// a VM is known later.
const pausedForSpace = "the host's disk is nearly full: free some, and it goes on by itself"

// LowSpace pauses all running VMs when their host's disk is nearly full, before
// a guest's write can make its disk invalid, and lets those go on when there is
// room again.
func (m *Manager) LowSpace(ctx context.Context, low bool, free int64) {
	m.low.Store(low)
	m.Log.WarnContext(ctx, "space for disks", "low", low, "free_bytes", free)
	vs, err := m.Store.ActiveVMs(ctx)
	if err != nil {
		m.Log.ErrorContext(ctx, "cannot pause VMs for want of space", "error", err)
		return
	}
	for _, v := range vs {
		m.tasks.Go(func() { // one that waits for its VM must not hold up the others, nor the next look
			if err := m.spaceChanged(ctx, v.ID); err != nil && ctx.Err() == nil {
				m.Log.ErrorContext(ctx, "cannot pause or resume for want of space", "vm", v.ID, "error", err)
			}
		})
	}
}

// spaceChanged does what is due when the VM's turn has come.
func (m *Manager) spaceChanged(ctx context.Context, id string) error {
	return m.locked(ctx, id, func(v *store.VM) error {
		low := m.low.Load()
		switch {
		case low && v.State == api.StateRunning:
			return m.pauseForSpace(ctx, v)
		case !low && v.State == api.StateRunning:
			return m.wakeMarked(ctx, v)
		case !low && v.State == api.StatePaused && v.Reason == pausedForSpace:
			if err := m.wake(ctx, v); err != nil {
				return err
			}
			m.touch(v.ID) // it was not idle, but paused
			return m.setState(ctx, v, api.StateRunning, "")
		}
		return nil
	})
}

// pauseForSpace pauses, then records: not as a person's pause, since the record may
// not fit on the disk any more. A mark in RunDir, which is in memory, stands for the
// record until that is there.
func (m *Manager) pauseForSpace(ctx context.Context, v *store.VM) error {
	mark := m.pauseMark(v.ID)
	markErr := os.WriteFile(mark, nil, 0o600) // what cannot be marked is paused all the same
	err := m.askVMM(ctx, v, (*firecracker.Client).Pause)
	if err == nil {
		err = m.setState(ctx, v, api.StatePaused, pausedForSpace)
	}
	if err != nil {
		return errors.Join(err, markErr)
	}
	return removeMark(mark)
}

// wakeMarked asks only a VM that may have been paused: each question left without
// an answer is a danger to Firecracker.
func (m *Manager) wakeMarked(ctx context.Context, v *store.VM) error {
	mark := m.pauseMark(v.ID)
	if _, err := os.Lstat(mark); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := m.wake(ctx, v); err != nil {
		return err
	}
	return removeMark(mark)
}

func removeMark(mark string) error {
	if err := os.Remove(mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (m *Manager) pauseMark(id string) string { return filepath.Join(m.RunDir, "pausing-"+id) }
