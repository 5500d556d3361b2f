package vm

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/guest"
	"banger/internal/store"
)

// A guest that halted, and whose word nobody heard, looks like one that idles:
// Firecracker goes on and tells nothing. What it cannot do is to answer.
const (
	haltCheck = 20 * time.Second
	// haltedCPU is more than a halted guest's VMM takes in haltCheck, also where
	// all is emulated (half a second). One that takes more is busy, or hangs.
	haltedCPU = haltCheck / 10
	// haltedLooks is how many times in a row a guest must be quiet to be asked.
	haltedLooks = 2
	// haltedQuestions is how many questions in a row it must leave unanswered: a
	// host that has no time for a guest makes it silent, too.
	haltedQuestions = 3
	// answeredLooks is for how many looks one that was asked is left alone: most
	// guests idle, and a question wakes them.
	answeredLooks = 30
)

// refusalTime is longer than a guest's kernel takes to refuse a connection when
// only its agent is gone, and shorter than Firecracker waits for an answer (2 s).
const refusalTime = time.Second

// quiet is what is known of a guest's use of its CPU.
type quiet struct {
	cpu   time.Duration // taken until the last look
	looks int           // at which it was quiet; below 0 it is left alone
}

// endHalted ends the VMMs whose guests have halted.
func (m *Manager) endHalted() {
	tick := time.NewTicker(haltCheck)
	defer tick.Stop()
	seen := map[string]quiet{}
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		now := map[string]quiet{}
		for _, id := range m.guests.attended() {
			used, err := cpuTime(cgroupDir + UnitOf(id))
			if err != nil {
				continue // it has just ended
			}
			q, known := seen[id]
			switch {
			case !known || used-q.cpu > haltedCPU && q.looks >= 0:
				q.looks = 0
			case q.looks < haltedLooks:
				q.looks++
			default:
				q.looks = -answeredLooks
				m.tasks.Go(func() { m.endIfHalted(id) })
			}
			now[id] = quiet{used, q.looks}
		}
		seen = now
	}
}

// endIfHalted asks before it acts: a guest that answers only idles.
func (m *Manager) endIfHalted(id string) {
	err := m.locked(m.ctx, id, func(v *store.VM) error {
		if v.State != api.StateRunning || m.low.Load() {
			return nil // paused or about to be, or on its way already
		}
		// A pause may have had no room for its record.
		runs := false
		err := m.askVMM(m.ctx, v, func(c *firecracker.Client, ctx context.Context) error {
			i, err := c.Info(ctx)
			runs = i.State == "Running"
			return err
		})
		if err != nil || !runs {
			return err
		}
		for range haltedQuestions {
			if !m.silent(v) {
				return nil
			}
		}
		m.Log.InfoContext(m.ctx, "ending a VMM whose guest has halted", "vm", v.ID, "name", v.Name)
		m.guests.note(id, guest.ActionPowerOff)
		return m.Helper.Kill(m.ctx, id)
	})
	if err != nil && m.ctx.Err() == nil {
		m.Log.Error("cannot end a VMM whose guest has halted", "vm", id, "error", err)
	}
}

// silent tells whether not even the guest's kernel answers.
func (m *Manager) silent(v *store.VM) bool {
	ctx, cancel := context.WithTimeout(m.ctx, agentTime)
	defer cancel()
	agent := jailOf(v.ID, v.UID).agent()
	defer agent.Close()
	asked := time.Now()
	_, err := agent.Health(ctx)
	return err != nil && m.ctx.Err() == nil && time.Since(asked) >= refusalTime
}

// cpuTime is what the processes of a cgroup have taken so far.
func cpuTime(cgroup string) (time.Duration, error) {
	raw, err := os.ReadFile(filepath.Join(cgroup, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	return time.Duration(field(string(raw), "usage_usec")) * time.Microsecond, nil
}
