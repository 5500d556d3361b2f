package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/helper"
	"banger/internal/store"
)

// agentTime bounds the question to an agent that may be hostile or dead.
const agentTime = 5 * time.Second

// Stop asks the guest to end and waits for it; after timeout it is killed.
// Stopping a VM that does not run is no error.
func (m *Manager) Stop(ctx context.Context, id string, timeout time.Duration, rep Reporter) error {
	return m.locked(ctx, id, func(v *store.VM) error {
		if v.State != api.StateRunning {
			return m.settle(ctx, v)
		}
		ended, done := m.exits.wait(v.ID)
		defer done()
		if err := m.setState(ctx, v, api.StateStopping, ""); err != nil {
			return err
		}
		rep.Stage("stop_guest", "asking the guest to shut down")
		err := m.shutdownGuest(ctx, v, ended, timeout)
		if errors.Is(err, ErrEnding) {
			return err // the record says stopping, and the next bangerd waits on
		}
		if err != nil {
			rep.Stage("kill", "stopping firecracker")
			m.Log.WarnContext(ctx, "guest did not shut down", "vm", v.ID, "error", err)
			if err := m.Helper.Kill(context.WithoutCancel(ctx), v.ID); err != nil {
				return err
			}
		}
		return m.setState(context.WithoutCancel(ctx), v, api.StateStopped, "")
	})
}

// shutdownGuest asks the guest and waits for its end. A guest half way down
// cannot be called back, so a cancellation does not end the waiting; only
// bangerd's own end does.
func (m *Manager) shutdownGuest(ctx context.Context, v *store.VM, ended <-chan helper.Exit, timeout time.Duration) error {
	agent := jailOf(v.ID, v.UID).agent()
	defer agent.Close()
	askCtx, cancel := context.WithTimeout(ctx, min(agentTime, timeout))
	defer cancel()
	if err := agent.Shutdown(askCtx, guest.Shutdown{GraceSeconds: int(timeout.Seconds()/2) + 1}); err != nil {
		return fmt.Errorf("cannot ask the guest to shut down: %w", err)
	}
	return awaitEnd(ctx, ended, timeout)
}

func awaitEnd(ctx context.Context, ended <-chan helper.Exit, timeout time.Duration) error {
	late := time.NewTimer(timeout)
	defer late.Stop()
	cancelled := ctx.Done()
	for {
		select {
		case <-ended:
			return nil
		case <-late.C:
			return fmt.Errorf("it did not end within %s", timeout)
		case <-cancelled:
			if errors.Is(context.Cause(ctx), ErrEnding) {
				return ErrEnding
			}
			cancelled = nil
		}
	}
}

// Kill ends the VMM at once. The guest can lose what it had not written.
func (m *Manager) Kill(ctx context.Context, id string, rep Reporter) error {
	return m.locked(ctx, id, func(v *store.VM) error {
		if v.State != api.StateRunning {
			return m.settle(ctx, v)
		}
		return m.kill(ctx, v, rep)
	})
}

// kill goes on when its caller leaves, and also when the intent cannot be
// stored: on a full disk it is what makes room again.
func (m *Manager) kill(ctx context.Context, v *store.VM, rep Reporter) error {
	ctx = context.WithoutCancel(ctx)
	if err := m.setState(ctx, v, api.StateStopping, ""); err != nil {
		m.Log.ErrorContext(ctx, "cannot store the intent", "vm", v.ID, "error", err)
	}
	rep.Stage("kill", "stopping firecracker")
	if err := m.Helper.Kill(ctx, v.ID); err != nil {
		return err
	}
	return m.setState(ctx, v, api.StateStopped, "")
}

// settle makes a VM that does not run stopped. One left in stopping by a
// failure is killed and cleaned first.
func (m *Manager) settle(ctx context.Context, v *store.VM) error {
	if v.State == api.StateCreated || v.State == api.StateStopped {
		return nil
	}
	if err := m.clear(ctx, v); err != nil {
		return err
	}
	return m.setState(ctx, v, api.StateStopped, "")
}

// clear removes whatever a VM may hold on the host.
func (m *Manager) clear(ctx context.Context, v *store.VM) error {
	if err := m.Helper.Kill(ctx, v.ID); err != nil {
		return err
	}
	return m.Helper.Cleanup(ctx, v.ID)
}

// Delete removes a VM with its disk. A running one is killed, but only with
// force.
func (m *Manager) Delete(ctx context.Context, id string, force bool, rep Reporter) error {
	return m.locked(ctx, id, func(v *store.VM) error {
		switch v.State {
		case api.StateRunning:
			if !force {
				return api.Conflict("cannot delete VM %q: it is running", v.Name).
					WithHint("stop it first with `banger vm stop %s`, or give --force", v.Name)
			}
			if err := m.kill(ctx, v, rep); err != nil {
				return err
			}
		case api.StateStarting, api.StateStopping, api.StateFailed:
			if err := m.clear(ctx, v); err != nil {
				return err
			}
		}
		rep.Stage("remove", "removing the disk")
		ctx := context.WithoutCancel(ctx) // half a delete is no use to anybody
		// The disk first: on a full one the rest may need its room.
		if err := os.RemoveAll(m.dir(v)); err != nil {
			return fmt.Errorf("cannot remove the VM's directory: %w", err)
		}
		if !v.StartedAt.IsZero() {
			if err := m.Helper.Release(ctx, v.ID); err != nil {
				return err
			}
		}
		return m.Store.DeleteVM(ctx, v.ID)
	})
}

// exited is called for every VMM that ended. Whoever waits for that end has
// been told; what remains are the ends nobody asked for.
func (m *Manager) exited(e helper.Exit) {
	m.spares.forget(e.ID)
	m.tasks.Go(func() {
		err := m.locked(m.ctx, e.ID, func(v *store.VM) error {
			// Started again meanwhile: vm.launch has removed the record.
			if _, err := readExit(m.ExitDir, v.ID); errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			switch v.State {
			case api.StateRunning:
				return m.ended(m.ctx, v, e)
			case api.StateStopping: // by a stop that failed or was cut off
				return m.setState(m.ctx, v, api.StateStopped, "")
			}
			return nil
		})
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Code == api.CodeNotFound {
			return // deleted in the meantime
		}
		if err != nil && m.ctx.Err() == nil {
			m.Log.Error("cannot record the end of a VM", "vm", e.ID, "error", err)
		}
	})
}

// ended records an end nobody asked for: stopped if the guest did it itself.
func (m *Manager) ended(ctx context.Context, v *store.VM, e helper.Exit) error {
	if e.Result == "success" && e.Status == "0" {
		return m.setState(ctx, v, api.StateStopped, "")
	}
	return m.setState(ctx, v, api.StateFailed, describe(e))
}
