package vm

import (
	"context"

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
			// Not as a person's pause: the record may not fit on the disk any more.
			if err := m.askVMM(ctx, v, (*firecracker.Client).Pause); err != nil {
				return err
			}
			return m.setState(ctx, v, api.StatePaused, pausedForSpace)
		case !low && v.State == api.StateRunning: // paused all the same, if the record did not fit
			return m.wake(ctx, v)
		case !low && v.State == api.StatePaused && v.Reason == pausedForSpace:
			if err := m.wake(ctx, v); err != nil {
				return err
			}
			return m.setState(ctx, v, api.StateRunning, "")
		}
		return nil
	})
}
