package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"banger/api"
	"banger/internal/store"
)

// activity remembers when VMs were last used.
type activity struct {
	mu   sync.Mutex
	last map[string]use
}

type use struct {
	at      time.Time
	bytes   int64 // through the tap, then
	streams int   // that are open
}

// touch notes that somebody has to do with the VM.
func (m *Manager) touch(id string) { m.activity.note(id, time.Now()) }

func (a *activity) note(id string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		a.last = map[string]use{}
	}
	u := a.last[id]
	u.at = now
	a.last[id] = u
}

// use notes that a stream to the VM is open until the function is called.
func (a *activity) use(id string) (over func()) {
	a.note(id, time.Now())
	a.count(id, 1)
	return func() { a.count(id, -1) }
}

func (a *activity) count(id string, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if u, known := a.last[id]; known { // else the VM was deleted meanwhile
		a.last[id] = use{time.Now(), u.bytes, u.streams + n}
	}
}

// traffic notes how much has passed the tap and returns since when the VM is
// idle.
func (a *activity) traffic(id string, bytes int64, now time.Time) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		a.last = map[string]use{}
	}
	u, known := a.last[id]
	if !known || u.bytes != bytes || u.streams > 0 {
		u.at, u.bytes = now, bytes
	}
	a.last[id] = u
	return u.at
}

func (a *activity) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.last, id)
}

// idleCheck is how often VMs that want it are looked at; a VM is stopped that
// much late at most.
const idleCheck = 15 * time.Second

// stopIdle stops the VMs that nobody has used for as long as they may be idle.
// There is no event for something that does not happen, so it looks.
func (m *Manager) stopIdle() {
	tick := time.NewTicker(idleCheck)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case now := <-tick.C:
			vs, err := m.Store.IdleStopVMs(m.ctx)
			if err != nil && m.ctx.Err() == nil {
				m.Log.Error("cannot look for idle VMs", "error", err)
			}
			for _, v := range vs {
				if m.unused(v, now) {
					m.tasks.Go(func() { m.stopIfIdle(v.ID) })
				}
			}
		}
	}
}

// stopIfIdle looks once more when it is the VM's turn: somebody may have come.
func (m *Manager) stopIfIdle(id string) {
	err := m.locked(m.ctx, id, func(v *store.VM) error {
		now := time.Now()
		if v.State != api.StateRunning || !m.unused(v, now) || m.hasSessions(m.ctx, v, now) {
			return nil
		}
		m.Log.InfoContext(m.ctx, "stopping an idle VM", "vm", v.ID, "name", v.Name, "idle_stop_seconds", v.IdleStop)
		return m.stop(m.ctx, v, time.Minute, fmt.Sprintf("nobody used it for %s", time.Duration(v.IdleStop)*time.Second), discard{})
	})
	if err != nil && m.ctx.Err() == nil {
		m.Log.Error("cannot stop an idle VM", "vm", id, "error", err)
	}
}

// unused tells what the host sees of it: nobody asked for the VM, nothing
// passed its tap.
func (m *Manager) unused(v *store.VM, now time.Time) bool {
	since := m.activity.traffic(v.ID, tapBytes(v.ID), now)
	return v.IdleStop > 0 && now.Sub(since) >= time.Duration(v.IdleStop)*time.Second
}

// hasSessions asks the guest, which wakes it; one that does not answer may have
// some.
func (m *Manager) hasSessions(ctx context.Context, v *store.VM, now time.Time) bool {
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	agent := jailOf(v.ID, v.UID).agent()
	defer agent.Close()
	h, err := agent.Health(ctx)
	if err != nil {
		m.Log.WarnContext(ctx, "cannot ask an idle VM for its sessions", "vm", v.ID, "error", err)
		return true
	}
	if h.Sessions > 0 {
		m.activity.note(v.ID, now)
	}
	return h.Sessions > 0
}

// tapBytes is what has passed the VM's tap, both ways; 0 without one.
func tapBytes(id string) int64 {
	total := int64(0)
	for _, counter := range []string{"rx_bytes", "tx_bytes"} {
		raw, err := os.ReadFile(filepath.Join(sysNet, tapOf(id), "statistics", counter))
		if err != nil {
			return 0
		}
		n, _ := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		total += n
	}
	return total
}
