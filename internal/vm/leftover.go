package vm

import (
	"context"
	"errors"
	"fmt"
	"os"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/store"
)

// ClearLeftover ends and removes what is left on the host of a VM that no
// record knows, and frees its slot. It refuses for one that exists. Of its files
// only those go that a delete had begun to remove.
func (m *Manager) ClearLeftover(ctx context.Context, id string) error {
	if !guest.ValidID(id) {
		return api.BadRequest("%.40q is not a VM's id", id)
	}
	unlock, err := m.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := m.Store.VMByID(ctx, id); err == nil {
		return api.Conflict("VM %s exists", id)
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	m.Log.WarnContext(ctx, "removing what is left of a VM that no record knows", "vm", id)
	if err := m.clear(ctx, &store.VM{ID: id}); err != nil {
		return err
	}
	if err := m.Helper.Release(ctx, id); err != nil {
		return err
	}
	if err := os.RemoveAll(m.doomedDir(id)); err != nil {
		return fmt.Errorf("cannot remove what a delete left of VM %s: %w", id, err)
	}
	return nil
}
