package vm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/guest"
	"banger/internal/store"
)

// agentTime bounds the question to an agent that may be hostile or dead.
const agentTime = 5 * time.Second

// Stop asks the guest to end and waits for it; after timeout it is killed.
// Stopping a VM that does not run is no error.
func (m *Manager) Stop(ctx context.Context, id string, timeout time.Duration, rep Reporter) error {
	return m.locked(ctx, id, func(v *store.VM) error { return m.stop(ctx, v, timeout, "", rep) })
}

// stop needs the VM's lock. The reason is what the record says then.
func (m *Manager) stop(ctx context.Context, v *store.VM, timeout time.Duration, reason string, rep Reporter) error {
	if !alive(v) {
		return m.settle(ctx, v)
	}
	ended, done := m.watchEnd(v.ID)
	defer done()
	before, agent := v.State, m.jailOf(v).agent()
	if before != api.StatePaused {
		early := m.connectAhead(ctx, v)
		defer early.close()
		agent = early.agent(m.jailOf(v))
	}
	defer agent.Close()
	if err := m.setState(ctx, v, api.StateStopping, ""); err != nil {
		return err
	}
	rep.Stage("stop_guest", "asking the guest to shut down")
	err := fault.Point(ctx, "stop.intent")
	ctx, cancel := untilEnding(ctx)
	defer cancel(nil)
	if err == nil && before == api.StatePaused {
		err = m.wake(ctx, v) // a frozen guest cannot shut down
	}
	if err == nil {
		err = m.shutdownGuest(ctx, v, agent, ended, timeout)
	}
	if err == nil {
		err = fault.Point(ctx, "stop.ended")
	}
	if errors.Is(err, ErrEnding) {
		return err // the record says stopping, and the next bangerd waits on
	}
	ctx = context.WithoutCancel(ctx)
	if err != nil {
		m.Log.WarnContext(ctx, "guest did not shut down", "vm", v.ID, "error", err)
		rep.Stage("kill", "stopping firecracker")
		if err := m.Helper.Kill(ctx, v.ID); err != nil {
			return m.notEnded(ctx, v, before, err)
		}
	}
	return m.stopped(ctx, v, reason)
}

// notEnded is for a VM that could not be ended: if it still runs, its record
// says so again.
func (m *Manager) notEnded(ctx context.Context, v *store.VM, before api.State, cause error) error {
	runs, err := unitRuns(v.ID)
	switch {
	case err != nil:
		return errors.Join(cause, err)
	case runs:
		return errors.Join(cause, m.setState(ctx, v, before, v.Reason))
	}
	return errors.Join(cause, m.stopped(ctx, v, ""))
}

// stopped completes the end of a VM that was asked for, or that its guest
// wanted.
func (m *Manager) stopped(ctx context.Context, v *store.VM, reason string) error {
	return errors.Join(m.cleanupCapabilities(ctx, v), m.setState(ctx, v, api.StateStopped, reason))
}

// untilEnding is a context that a person cannot cancel, but bangerd's end does:
// a stop that has begun goes on, and is never turned into a kill.
func untilEnding(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	out, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), ErrEnding) {
			cancel(ErrEnding)
		}
	})
	return out, func(cause error) { stop(); cancel(cause) }
}

// shutdownGuest asks the guest and waits for its end. A guest half way down
// cannot be called back, so a cancellation does not end the waiting; only
// bangerd's own end does.
func (m *Manager) shutdownGuest(ctx context.Context, v *store.VM, agent *guest.Client, ended end, timeout time.Duration) error {
	answer, err := askToEnd(ctx, agent, timeout)
	if err != nil { // once more: that connection may have been an old one, and asking twice changes nothing
		agent := m.jailOf(v).agent()
		defer agent.Close()
		answer, err = askToEnd(ctx, agent, timeout)
	}
	if err != nil {
		return fmt.Errorf("cannot ask the guest to shut down: %w", err)
	}
	if err := fault.Point(ctx, "stop.asked"); err != nil {
		return err
	}
	if err := awaitEnd(ctx, ended, timeout); err != nil {
		return err
	}
	// Its init has said that it ends: no panic, and nobody's patience was over.
	if answer.Sound && m.guests.intent(v.ID) == guest.ActionReboot {
		m.noteCleanEnd(v)
	}
	return nil
}

func askToEnd(ctx context.Context, agent *guest.Client, timeout time.Duration) (guest.Ending, error) {
	ctx, cancel := context.WithTimeout(ctx, min(agentTime, timeout))
	defer cancel()
	return agent.Shutdown(ctx, guest.Shutdown{GraceSeconds: int(timeout.Seconds()/2) + 1})
}

func awaitEnd(ctx context.Context, ended end, timeout time.Duration) error {
	late := time.NewTimer(timeout)
	defer late.Stop()
	cancelled := ctx.Done()
	for {
		select {
		case <-ended.gone:
			return nil
		case <-ended.verdict:
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
	if err := m.cutShort(ctx, id); err != nil {
		return err
	}
	return m.locked(ctx, id, func(v *store.VM) error {
		if !alive(v) {
			return m.settle(ctx, v)
		}
		return m.kill(ctx, v, rep)
	})
}

// errUnwanted is why a start ends whose VM is to be killed or deleted.
var errUnwanted = fmt.Errorf("%w: the VM was killed or deleted meanwhile", ErrCancelled)

// cutShort ends what holds the VM's lock and may go on for long. Of a VM that is being
// stopped it ends the VMM, and the stop, which may have an hour, sees that and
// completes. A start that waits for the check of a disk is cancelled.
func (m *Manager) cutShort(ctx context.Context, id string) error {
	if cancel, starts := m.starting.Load(id); starts {
		cancel.(context.CancelCauseFunc)(errUnwanted)
		return nil
	}
	v, err := m.Store.VMByID(ctx, id)
	if err != nil || v.State != api.StateStopping {
		return nil //nolint:nilerr // whoever has the lock finds out
	}
	return m.Helper.Kill(ctx, id)
}

// kill goes on when its caller leaves, and also when the intent cannot be
// stored: on a full disk it is what makes room again.
func (m *Manager) kill(ctx context.Context, v *store.VM, rep Reporter) error {
	ctx = context.WithoutCancel(ctx)
	ended, done := m.watchEnd(v.ID)
	defer done()
	before := v.State
	if err := m.setState(ctx, v, api.StateStopping, ""); err != nil {
		m.Log.ErrorContext(ctx, "cannot store the intent", "vm", v.ID, "error", err)
	}
	rep.Stage("kill", "stopping firecracker")
	err := m.killVMM(ctx, v.ID, ended)
	if errors.Is(err, errDying) {
		return err // stopped when it has ended
	}
	if err != nil {
		return m.notEnded(ctx, v, before, err)
	}
	return errors.Join(fault.Point(ctx, "kill.ended"), m.stopped(ctx, v, ""))
}

// killTime is how long the kernel may take to end a VMM, whose memory it frees.
const killTime = 30 * time.Second

// errDying: it was killed and has not ended, as when the kernel waits for a disk.
var errDying = errors.New("firecracker was killed and does not end")

// killVMM returns when the VMM's processes have ended. What they held is removed by
// systemd's clean-up, which the next start and the release of the slot wait for.
func (m *Manager) killVMM(ctx context.Context, id string, ended end) error {
	gone, err := m.beginKill(ctx, id, ended)
	if err != nil {
		return err
	}
	return awaitDeath(ctx, gone)
}

// beginKill returns when the VMM's processes have to end, with a channel that is
// closed when they have; nil if that is so already. Where nobody can watch them,
// systemd's word is awaited.
func (m *Manager) beginKill(ctx context.Context, id string, ended end) (gone <-chan struct{}, err error) {
	if err := fault.Point(ctx, "kill.intent"); err != nil {
		return nil, err
	}
	if ended.gone == nil {
		return nil, m.Helper.Kill(ctx, id)
	}
	if err := m.Helper.BeginKill(ctx, id); err != nil {
		// A helper that ended in the middle may have told systemd or not.
		m.Log.WarnContext(ctx, "killing once more", "vm", id, "error", err)
		return nil, m.Helper.Kill(ctx, id)
	}
	return ended.gone, nil
}

// awaitDeath is for a VMM that was killed.
func awaitDeath(ctx context.Context, gone <-chan struct{}) error {
	if gone == nil {
		return nil
	}
	if err := awaitEnd(ctx, end{gone: gone}, killTime); err != nil {
		return fmt.Errorf("%w: %w", errDying, err)
	}
	return nil
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
	return m.stopped(ctx, v, "")
}

// clear removes whatever a VM may hold on the host.
func (m *Manager) clear(ctx context.Context, v *store.VM) error {
	if err := m.Helper.Kill(ctx, v.ID); err != nil {
		return err
	}
	return m.Helper.Cleanup(ctx, v.ID)
}
