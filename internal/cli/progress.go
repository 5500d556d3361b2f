package cli

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"banger/api"
	"banger/client"
)

// redraw is how often a live line shows the time that passes.
const redraw = 100 * time.Millisecond

// follow watches an operation to its end with progress: a live line on a
// terminal, whole lines with -v, silence otherwise. When ctx is cancelled it
// cancels the operation on the daemon and waits until that is done. An
// operation that failed is returned together with its error.
func (a *App) follow(ctx context.Context, c *client.Client, op api.Operation) (api.Operation, error) {
	m := a.newMeter("")
	defer m.stop()
	return a.followOn(ctx, c, op, m, m.show)
}

// followOn is follow on a meter that also serves other work; seen may be nil.
func (a *App) followOn(ctx context.Context, c *client.Client, op api.Operation, m *meter, seen func(api.Operation)) (api.Operation, error) {
	last, err := c.Watch(ctx, op.ID, seen)
	if err != nil && ctx.Err() != nil {
		return a.cancel(ctx, c, op, m)
	}
	if err != nil {
		return op, err
	}
	return last, outcome(last)
}

// cancel has the daemon undo op and waits for the end of that.
func (a *App) cancel(cancelled context.Context, c *client.Client, op api.Operation, m *meter) (api.Operation, error) {
	ctx, done := a.cleanup()
	defer done()
	m.say("cancelling " + op.Target)
	if err := c.CancelOperation(ctx, op.ID); err != nil {
		return op, fmt.Errorf("cannot cancel operation %s: %w", op.ID, err)
	}
	last, err := c.Watch(ctx, op.ID, nil)
	if err != nil {
		return op, err
	}
	return last, context.Cause(cancelled) // also if it was done before it heard of us
}

// outcome is the error of an ended operation, or nil.
func outcome(op api.Operation) error {
	switch {
	case op.Status == api.OperationSucceeded:
		return nil
	case op.Error != nil:
		return op.Error
	case op.Status == api.OperationCancelled:
		return api.Problemf(499, api.CodeCancelled, "%s of %s was cancelled", op.Kind, op.Target)
	}
	return api.Internal("%s of %s failed, and bangerd did not say why", op.Kind, op.Target).
		WithHint("journalctl -u bangerd has it under operation %s", op.ID)
}

// meter shows stages. Its methods may be called from several goroutines.
type meter struct {
	talk    *talk
	verbose bool
	mu      sync.Mutex
	text    string
	since   time.Time
	told    int // stages already printed whole, with -v
	done    chan struct{}
	ended   sync.WaitGroup
}

func (a *App) newMeter(text string) *meter {
	m := &meter{talk: a.talk, verbose: a.verbose, text: text, since: time.Now(), done: make(chan struct{})}
	if !m.verbose && a.talk.terminal {
		m.ended.Go(m.animate)
	}
	return m
}

// animate redraws the live line, so that a person sees it is alive.
func (m *meter) animate() {
	ticker := time.NewTicker(redraw)
	defer ticker.Stop()
	for {
		select {
		case <-m.done:
			m.talk.status("")
			return
		case <-ticker.C:
			m.mu.Lock()
			text, since := m.text, m.since
			m.mu.Unlock()
			if text != "" {
				m.talk.status(fmt.Sprintf("%s %s", text, m.talk.paint(dim, fmt.Sprintf("%.1fs", time.Since(since).Seconds()))))
			}
		}
	}
}

// stop ends the meter and clears its line. It may be called once.
func (m *meter) stop() {
	close(m.done)
	m.ended.Wait()
}

func (m *meter) say(text string) {
	if m.verbose {
		m.talk.note("%s", text)
	}
	m.set(text)
}

// set changes what the live line says; the time it shows begins anew.
func (m *meter) set(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.text, m.since = oneLine(text), time.Now()
}

// show is called with each state of an operation.
func (m *meter) show(op api.Operation) {
	if len(op.Stages) == 0 {
		return
	}
	m.mu.Lock()
	m.text = oneLine(stageText(op.Stages[len(op.Stages)-1]))
	m.mu.Unlock()
	if !m.verbose {
		return
	}
	for ; m.told < len(op.Stages); m.told++ {
		s := op.Stages[m.told]
		if s.Milliseconds == 0 && !client.Ended(op) {
			return
		}
		m.talk.note("%s (%.0f ms)", stageText(s), s.Milliseconds)
	}
}

func stageText(s api.Stage) string {
	text := s.Detail
	if text == "" {
		text = s.Name
	}
	switch {
	case s.Total > 0:
		text += fmt.Sprintf(" %s of %s (%d%%)", bytesText(s.Done), bytesText(s.Total), min(100, 100*s.Done/s.Total))
	case s.Done > 0:
		text += " " + bytesText(s.Done)
	}
	return text
}

// oneLine fits text on one line of any terminal.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(plain(s)), " ")
	if r := []rune(s); len(r) > 70 {
		s = string(r[:67]) + "..."
	}
	return s
}
