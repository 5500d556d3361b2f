package vm

import (
	"context"
	"errors"
	"fmt"
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
func (m *Manager) Stop(ctx context.Context, ref string, timeout time.Duration, rep Reporter) error {
	return m.locked(ctx, ref, func(v *store.VM) error {
		if v.State != api.StateRunning {
			return m.settle(ctx, v)
		}
		ended, done := m.exits.wait(v.ID)
		defer done()
		if err := m.setState(ctx, v, api.StateStopping, ""); err != nil {
			return err
		}
		rep.Stage("stop_guest", "asking the guest to shut down")
		if err := m.shutdownGuest(ctx, v, ended, timeout); err != nil {
			rep.Stage("kill", "stopping firecracker")
			m.Log.WarnContext(ctx, "guest did not shut down", "vm", v.ID, "error", err)
			// The intent is stored and the guest may be half way down: going
			// back is impossible, so a caller that left does not stop this.
			if err := m.Helper.Kill(context.WithoutCancel(ctx), v.ID); err != nil {
				return err
			}
		}
		return m.setState(context.WithoutCancel(ctx), v, api.StateStopped, "")
	})
}

func (m *Manager) shutdownGuest(ctx context.Context, v *store.VM, ended <-chan helper.Exit, timeout time.Duration) error {
	agent := jailOf(v.ID, v.UID).agent()
	defer agent.Close()
	askCtx, cancel := context.WithTimeout(ctx, min(agentTime, timeout))
	defer cancel()
	if err := agent.Shutdown(askCtx, guest.Shutdown{GraceSeconds: int(timeout.Seconds()/2) + 1}); err != nil {
		return fmt.Errorf("cannot ask the guest to shut down: %w", err)
	}
	late := time.NewTimer(timeout)
	defer late.Stop()
	select {
	case <-ended:
		return nil
	case <-late.C:
		return fmt.Errorf("it did not end within %s", timeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Kill ends the VMM at once. The guest can lose what it had not written.
func (m *Manager) Kill(ctx context.Context, ref string, rep Reporter) error {
	return m.locked(ctx, ref, func(v *store.VM) error {
		if v.State != api.StateRunning {
			return m.settle(ctx, v)
		}
		return m.kill(ctx, v, rep)
	})
}

func (m *Manager) kill(ctx context.Context, v *store.VM, rep Reporter) error {
	if err := m.setState(ctx, v, api.StateStopping, ""); err != nil {
		return err
	}
	rep.Stage("kill", "stopping firecracker")
	if err := m.Helper.Kill(ctx, v.ID); err != nil {
		return err
	}
	return m.setState(context.WithoutCancel(ctx), v, api.StateStopped, "")
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

// clear removes whatever a VM may hold on the host. Without a slot it never
// got as far as holding anything.
func (m *Manager) clear(ctx context.Context, v *store.VM) error {
	if v.Slot < 0 {
		return nil
	}
	if err := m.Helper.Kill(ctx, v.ID); err != nil {
		return err
	}
	return m.Helper.Cleanup(ctx, v.ID)
}

// Delete removes a VM with its disk. A running one is killed, but only with
// force.
func (m *Manager) Delete(ctx context.Context, ref string, force bool, rep Reporter) error {
	return m.locked(ctx, ref, func(v *store.VM) error {
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
		if v.Slot >= 0 {
			if err := m.Helper.Release(ctx, v.ID); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(m.dir(v)); err != nil {
			return fmt.Errorf("cannot remove the VM's directory: %w", err)
		}
		return m.Store.DeleteVM(ctx, v.ID)
	})
}

// exited is called for every VMM that ended. Whoever waits for that end has
// been told; what remains are the ends nobody asked for.
func (m *Manager) exited(e helper.Exit) {
	m.tasks.Go(func() {
		err := m.locked(m.ctx, e.ID, func(v *store.VM) error {
			if v.State != api.StateRunning || e.UnixNano < v.StartedAt.UnixNano() {
				return nil
			}
			return m.ended(m.ctx, v, e)
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
