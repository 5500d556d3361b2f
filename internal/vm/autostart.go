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
	f, err := os.OpenFile(mark, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot note that VMs were started: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	vs, err := m.Store.AutostartVMs(m.ctx)
	if err != nil {
		return err
	}
	for _, v := range vs {
		m.tasks.Go(func() { m.autostartVM(v.ID) })
	}
	return nil
}

func (m *Manager) autostartVM(id string) {
	unlock, err := m.starting.lock(m.ctx, "autostart") // one after the other: all at once would only slow each
	if err != nil {
		return
	}
	defer unlock()
	err = m.locked(m.ctx, id, func(v *store.VM) error {
		if hasVMM(v.State) || v.State == api.StateStarting {
			return nil
		}
		m.Log.InfoContext(m.ctx, "starting with the host", "vm", v.ID, "name", v.Name)
		return m.start(m.ctx, v, discard{})
	})
	if err != nil && m.ctx.Err() == nil {
		m.Log.Error("cannot start with the host", "vm", id, "error", err)
	}
}
