package vm

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/helper"
	"banger/internal/store"
)

// attendants know what the running guests are about to do. Firecracker's end
// alone does not tell a reboot from a power-off, and after a power-off it does
// not end at all.
type attendants struct {
	mu      sync.Mutex
	intents map[string]string // by id: what the guest said last
	ending  map[string]context.CancelFunc
	starts  map[string][]time.Time // restarts nobody asked for, the last ones
	turn    turn                   // to connect to a guest
}

// attend listens to a running VM's guest until its VMM ends.
func (m *Manager) attend(v *store.VM) {
	ctx, cancel := context.WithCancel(m.ctx)
	a := &m.guests
	a.mu.Lock()
	if a.ending == nil {
		a.intents, a.ending, a.starts = map[string]string{}, map[string]context.CancelFunc{}, map[string][]time.Time{}
	}
	if old := a.ending[v.ID]; old != nil {
		old()
	}
	a.ending[v.ID] = cancel
	delete(a.intents, v.ID)
	a.mu.Unlock()
	id, uid := v.ID, v.UID
	m.tasks.Go(func() { m.listen(ctx, id, uid) })
}

// leaveGuest ends the listening and returns what the guest had said.
func (m *Manager) leaveGuest(id string) (intent string) {
	a := &m.guests
	a.mu.Lock()
	defer a.mu.Unlock()
	intent = a.intents[id]
	if cancel := a.ending[id]; cancel != nil {
		cancel()
	}
	delete(a.ending, id)
	delete(a.intents, id)
	return intent
}

// Guests that do not answer are asked again after a while: an agent that has
// no such question, or one that a hostile guest has replaced, costs little.
const askAgain = 10 * time.Second

// powerOffTime is how long a guest that said it would power off has for it.
// Firecracker then idles for ever, without a word that its owner could trust.
const powerOffTime = 10 * time.Second

func (m *Manager) listen(ctx context.Context, id string, uid int) {
	for {
		agent := guest.NewClient(func(ctx context.Context, port uint32) (net.Conn, error) {
			leave, err := m.guests.turn.take(ctx)
			if err != nil {
				return nil, err
			}
			defer leave()
			return jailOf(id, uid).dialGuest(ctx, port)
		})
		said, err := agent.End(ctx)
		agent.Close()
		if err == nil && (said.Action == guest.ActionReboot || said.Action == guest.ActionPowerOff) {
			m.heard(ctx, id, said.Action)
			return
		}
		select {
		case <-time.After(askAgain):
		case <-ctx.Done():
			return
		}
	}
}

// attended lists the VMs whose guests are listened to.
func (a *attendants) attended() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Keys(a.ending))
}

// intent is what a guest said last.
func (a *attendants) intent(id string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.intents[id]
}

// note keeps what a guest does next, as long as it is listened to.
func (a *attendants) note(id, action string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ending[id] != nil {
		a.intents[id] = action
	}
}

func (m *Manager) heard(ctx context.Context, id, action string) {
	m.guests.note(id, action)
	m.Log.InfoContext(ctx, "guest ends", "vm", id, "action", action)
	if action != guest.ActionPowerOff {
		return
	}
	select {
	case <-time.After(powerOffTime):
	case <-ctx.Done():
		return
	}
	// It has written all it wanted to and halted, or hangs.
	if err := m.Helper.Kill(ctx, id); err != nil && ctx.Err() == nil {
		m.Log.ErrorContext(ctx, "cannot end a VMM whose guest has powered off", "vm", id, "error", err)
	}
}

// exited is called for every VMM that ended. Whoever waits for that end has
// been told; what remains are the ends nobody asked for.
func (m *Manager) exited(e helper.Exit) {
	m.spares.forget(e.ID)
	m.tasks.Go(func() {
		err := m.locked(m.ctx, e.ID, func(v *store.VM) error {
			// Started again meanwhile: vm.launch has removed the record.
			newest, err := readExit(m.ExitDir, v.ID)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			} else if err == nil {
				e = newest
			}
			intent := m.leaveGuest(v.ID)
			switch {
			case alive(v):
				return m.ended(m.ctx, v, e, intent)
			case v.State == api.StateStopping: // by a stop that failed or was cut off
				return m.stopped(m.ctx, v, "")
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

// ended records an end nobody asked for, and starts the VM again where its
// guest or its policy wants that.
func (m *Manager) ended(ctx context.Context, v *store.VM, e helper.Exit, intent string) error {
	clean := e.Result == "success" && e.Status == "0"
	var err error
	switch {
	case intent == guest.ActionPowerOff:
		err = m.stopped(ctx, v, "the guest powered off")
	case clean:
		err = m.stopped(ctx, v, "the guest rebooted")
	default:
		err = m.failed(ctx, v, describe(e))
	}
	again := v.Restart == api.RestartAlways ||
		v.Restart == api.RestartOnFailure && v.State == api.StateFailed ||
		clean && intent != guest.ActionPowerOff && v.Restart != api.RestartNever
	if err != nil || !again {
		return err
	}
	return m.startAgain(ctx, v)
}

func (m *Manager) failed(ctx context.Context, v *store.VM, reason string) error {
	return errors.Join(m.cleanupCapabilities(ctx, v), m.setState(ctx, v, api.StateFailed, reason))
}

// A VM that ends again and again is left alone after restartLimit starts
// within restartWindow.
const (
	restartLimit  = 5
	restartWindow = 5 * time.Minute
)

func (m *Manager) startAgain(ctx context.Context, v *store.VM) error {
	if !m.guests.mayRestart(v.ID, time.Now()) {
		return m.failed(ctx, v, v.Reason+"; it was started again too often")
	}
	m.Log.InfoContext(ctx, "starting again", "vm", v.ID, "name", v.Name, "reason", v.Reason)
	if err := m.start(ctx, v, discard{}); err != nil && ctx.Err() == nil {
		m.Log.ErrorContext(ctx, "cannot start again", "vm", v.ID, "error", err)
	}
	return nil // the record tells
}

// mayRestart counts a restart.
func (a *attendants) mayRestart(id string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.starts == nil {
		a.starts = map[string][]time.Time{}
	}
	var recent []time.Time
	for _, t := range a.starts[id] {
		if now.Sub(t) < restartWindow {
			recent = append(recent, t)
		}
	}
	if len(recent) >= restartLimit {
		a.starts[id] = recent
		return false
	}
	a.starts[id] = append(recent, now)
	return true
}

// forget drops what is known of a VM that is deleted.
func (a *attendants) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.starts, id)
}

// discard is the Reporter of work that nobody watches.
type discard struct{}

func (discard) Stage(string, string) {}
