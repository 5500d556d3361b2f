package vm

import (
	"context"
	"time"

	"banger/internal/store"
)

// Restart stops a VM through its guest and starts it again; one that does not
// run is started. Nothing else can happen to the VM in between.
func (m *Manager) Restart(ctx context.Context, id string, timeout time.Duration, rep Reporter) error {
	return m.locked(ctx, id, func(v *store.VM) error {
		if err := m.stop(ctx, v, timeout, "", rep); err != nil {
			return err
		}
		if ctx.Err() != nil { // then it stays stopped
			return context.Cause(ctx)
		}
		return m.start(ctx, v, rep)
	})
}
