package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"banger/api"
	"banger/internal/store"
)

// autostart starts the VMs that want it, once per boot of the host: a restart
// of bangerd must not start a VM that somebody has stopped. mark is a file
// that the host's next boot takes away.
func (m *Manager) autostart(mark string) error {
	if _, err := os.Lstat(mark); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot tell whether VMs were started: %w", err)
	}
	vs, err := m.Store.AutostartVMs(m.ctx)
	if err != nil {
		return err
	}
	m.tasks.Go(func() {
		for _, v := range vs { // one after the other: all at once would only slow each
			m.autostartVM(v.ID)
		}
		if m.ctx.Err() != nil {
			return // cut off: the next bangerd starts the rest
		}
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			m.Log.Error("cannot note that VMs were started", "error", err)
		}
	})
	return nil
}

func (m *Manager) autostartVM(id string) {
	err := m.locked(m.ctx, id, func(v *store.VM) error {
		if alive(v) || v.State == api.StateStarting {
			return nil
		}
		m.Log.InfoContext(m.ctx, "starting with the host", "vm", v.ID, "name", v.Name)
		return m.start(m.ctx, v, discard{})
	})
	if err != nil && m.ctx.Err() == nil {
		m.Log.Error("cannot start with the host", "vm", id, "error", err)
	}
}
