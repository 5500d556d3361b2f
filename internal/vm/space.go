package vm

import (
	"context"
	"sync"

	"banger/api"
	"banger/internal/store"
)

// pausedForSpace is why a VM is paused that nobody paused; it is also how such
// a VM is known later.
const pausedForSpace = "the host's disk is nearly full: free some, and it goes on by itself"

// LowSpace pauses all running VMs when their host's disk is nearly full, before
// a guest's write can make its disk invalid, and lets those go on when there is
// room again.
func (m *Manager) LowSpace(ctx context.Context, low bool, free int64) {
	m.Log.WarnContext(ctx, "space for disks", "low", low, "free_bytes", free)
	vs, err := m.Store.ActiveVMs(ctx)
	if err != nil {
		m.Log.ErrorContext(ctx, "cannot pause VMs for want of space", "error", err)
		return
	}
	var all sync.WaitGroup
	for _, v := range vs {
		all.Go(func() {
			if err := m.spaceChanged(ctx, v.ID, low); err != nil {
				m.Log.ErrorContext(ctx, "cannot pause or resume for want of space", "vm", v.ID, "error", err)
			}
		})
	}
	all.Wait()
}

func (m *Manager) spaceChanged(ctx context.Context, id string, low bool) error {
	return m.locked(ctx, id, func(v *store.VM) error {
		switch {
		case low && v.State == api.StateRunning:
			return m.pause(ctx, v, pausedForSpace)
		case !low && v.State == api.StatePaused && v.Reason == pausedForSpace:
			if err := m.wake(ctx, v); err != nil {
				return err
			}
			return m.setState(ctx, v, api.StateRunning, "")
		}
		return nil
	})
}
