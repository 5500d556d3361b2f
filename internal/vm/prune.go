package vm

import (
	"context"
	"time"

	"banger/api"
	"banger/internal/store"
)

// Prunable lists the VMs that do not run and were neither made nor started
// since before.
func (m *Manager) Prunable(ctx context.Context, before time.Time) ([]*store.VM, error) {
	all, err := m.List(ctx)
	if err != nil {
		return nil, err
	}
	var old []*store.VM
	for _, v := range all {
		if prunable(v, before) {
			old = append(old, v)
		}
	}
	return old, nil
}

func prunable(v *store.VM, before time.Time) bool {
	switch v.State {
	case api.StateCreated, api.StateStopped, api.StateFailed:
		return !v.CreatedAt.After(before) && !v.StartedAt.After(before)
	}
	return false
}

// Prune deletes a VM if it is still one of Prunable.
func (m *Manager) Prune(ctx context.Context, id string, before time.Time, rep Reporter) error {
	return m.locked(ctx, id, func(v *store.VM) error {
		if !prunable(v, before) {
			return api.Conflict("cannot prune VM %q: it is %s, and was started meanwhile", v.Name, v.State)
		}
		return m.remove(ctx, v, rep)
	})
}
