package vm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/store"
)

// vmmTime bounds a question to a VMM that may be stuck or hostile.
const vmmTime = 10 * time.Second

// losesVsock are the releases of Firecracker that no connection from the host
// gets through to the guest after a pause.
var losesVsock = []string{"1.16.0", "1.16.1"}

// Pause halts a running VM; its memory stays. reason, which may be empty, tells
// a person why, where nobody asked for it.
//
// The record says paused before the VM is, and running only after it runs: who
// is caught in between finds a VM that has to be resumed, never one that is
// taken for running and does not answer.
func (m *Manager) Pause(ctx context.Context, id, reason string, rep Reporter) error {
	return m.locked(ctx, id, func(v *store.VM) error {
		switch v.State {
		case api.StateRunning:
		case api.StatePaused:
			return api.Conflict("cannot pause VM %q: it is paused already", v.Name).WithHint("let it go on with `banger vm resume %s`", v.Name)
		default:
			return notRunning("cannot pause VM %q", v)
		}
		rep.Stage("pause", "halting the virtual CPUs")
		ctx := context.WithoutCancel(ctx) // it is over in a moment, either way
		return m.pause(ctx, v, reason)
	})
}

func (m *Manager) pause(ctx context.Context, v *store.VM, reason string) error {
	if err := m.mayPause(ctx, v); err != nil {
		return err
	}
	if err := m.setState(ctx, v, api.StatePaused, reason); err != nil {
		return err
	}
	err := m.askVMM(ctx, v, (*firecracker.Client).Pause)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("cannot pause VM %q: %w", v.Name, err)
	if wakeErr := m.wake(ctx, v); wakeErr != nil {
		return errors.Join(err, wakeErr) // paused, as far as anybody can tell
	}
	return errors.Join(err, m.setState(ctx, v, api.StateRunning, ""))
}

func (m *Manager) mayPause(ctx context.Context, v *store.VM) error {
	var info firecracker.Info
	err := m.askVMM(ctx, v, func(c *firecracker.Client, ctx context.Context) (err error) {
		info, err = c.Info(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot pause VM %q: %w", v.Name, err)
	}
	if slices.Contains(losesVsock, info.Version) {
		return api.Problemf(http.StatusConflict, api.CodePrerequisite, "cannot pause VM %q: its guest could not be reached afterwards, with Firecracker %s", v.Name, info.Version).
			WithHint("use another release of Firecracker; the VM takes it with its next start")
	}
	return nil
}

// Resume lets a paused VM go on.
func (m *Manager) Resume(ctx context.Context, id string, rep Reporter) error {
	return m.locked(ctx, id, func(v *store.VM) error {
		switch v.State {
		case api.StatePaused:
		case api.StateRunning:
			return api.Conflict("cannot resume VM %q: it is not paused", v.Name)
		default:
			return notRunning("cannot resume VM %q", v)
		}
		if m.low.Load() {
			return api.Problemf(http.StatusInsufficientStorage, api.CodeNoSpace, "cannot resume VM %q: the host's disk is nearly full", v.Name).
				WithHint("free some; VMs that were paused for it go on by themselves")
		}
		rep.Stage("resume", "letting the virtual CPUs run")
		ctx := context.WithoutCancel(ctx)
		if err := m.wake(ctx, v); err != nil {
			return fmt.Errorf("cannot resume VM %q: %w", v.Name, err)
		}
		m.touch(v.ID) // it was not idle, but paused
		return m.setState(ctx, v, api.StateRunning, "")
	})
}

// wake resumes a VMM and leaves the record alone. One that was not paused does
// not mind.
func (m *Manager) wake(ctx context.Context, v *store.VM) error {
	return m.askVMM(ctx, v, (*firecracker.Client).Resume)
}

// askVMM makes one call of Firecracker's API.
func (m *Manager) askVMM(ctx context.Context, v *store.VM, call func(*firecracker.Client, context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, vmmTime)
	defer cancel()
	fc := firecracker.New(m.jailOf(v).dialAPI, &m.calls)
	defer fc.Close()
	return call(fc, ctx)
}

// reachable refuses what needs a guest that answers. cannot has one %q, for
// the VM's name.
func reachable(cannot string, v *store.VM) error {
	switch v.State {
	case api.StateRunning:
		return nil
	case api.StatePaused:
		return api.Problemf(http.StatusConflict, api.CodePaused, cannot+": it is paused", v.Name).
			WithHint("let it go on with `banger vm resume %s`", v.Name)
	}
	return notRunning(cannot, v)
}

func notRunning(cannot string, v *store.VM) error {
	p := api.Problemf(http.StatusConflict, api.CodeNotRunning, cannot+": it is %s", v.Name, v.State)
	if v.State == api.StateStarting || v.State == api.StateStopping {
		return p.WithHint("see `banger vm show %s`", v.Name)
	}
	return p.WithHint("start it with `banger vm start %s`", v.Name)
}

// alive reports whether a VM has a VMM that nobody is ending or starting.
func alive(v *store.VM) bool { return v.State == api.StateRunning || v.State == api.StatePaused }
