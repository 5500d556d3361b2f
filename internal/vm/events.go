package vm

import (
	"context"
	"sync"
	"time"

	"banger/api"
	"banger/internal/store"
)

// keepEvents is how many events stay readable.
const keepEvents = 1024

// events is what happened lately. Whoever makes events never waits for those
// who read: a reader that falls behind by more than is kept is told that it
// missed something, and how everything is now.
type events struct {
	mu      sync.Mutex
	seq     int64
	kept    []api.Event   // oldest first
	changed chan struct{} // closed at the next event
}

// newEvents begins to number at the clock, so that a number of an earlier
// bangerd is not taken for one of this.
func newEvents() *events {
	return &events{seq: time.Now().UnixMilli(), changed: make(chan struct{})}
}

func (e *events) tell(kind api.EventKind, v *store.VM) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seq++
	if len(e.kept) == keepEvents {
		e.kept = append(e.kept[:0], e.kept[1:]...)
	}
	e.kept = append(e.kept, eventOf(kind, e.seq, v))
	close(e.changed)
	e.changed = make(chan struct{})
}

func eventOf(kind api.EventKind, seq int64, v *store.VM) api.Event {
	return api.Event{Seq: seq, Kind: kind, At: time.Now().UTC(), ID: v.ID, Name: v.Name, State: v.State, Reason: v.Reason}
}

// after returns the events behind seq and a channel that is closed with the
// next one. known is false when some are no longer kept.
func (e *events) after(seq int64) (list []api.Event, now int64, known bool, changed <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	first := e.seq - int64(len(e.kept)) // the last that is not kept
	if seq < first || seq > e.seq {
		return nil, e.seq, false, e.changed
	}
	return append(list, e.kept[seq-first:]...), e.seq, true, e.changed
}

// oldest is the number from which on everything is kept.
func (e *events) oldest() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seq - int64(len(e.kept))
}

// EventQuery says which events are wanted.
type EventQuery struct {
	// Since is the number of the last event already seen; 0 means all that are
	// kept. Without it (nil) a snapshot comes first.
	Since  *int64
	Ref    string // of one VM only
	Follow bool
}

// Events calls tell with events in order until ctx ends, tell fails, there are
// no more and none are to be waited for, or the one VM asked for is deleted.
func (m *Manager) Events(ctx context.Context, q EventQuery, tell func(api.Event) error) error {
	id := ""
	if q.Ref != "" {
		v, err := m.Get(ctx, q.Ref)
		if err != nil {
			return err
		}
		id = v.ID
	}
	r := eventReader{m: m, id: id, tell: tell}
	var err error
	switch {
	case q.Since == nil:
		err = r.snapshot(ctx)
	case *q.Since == 0:
		r.seen = m.events.oldest()
	default:
		r.seen = *q.Since
	}
	for err == nil && !r.over {
		var changed <-chan struct{}
		if changed, err = r.read(ctx); err != nil || r.over || !q.Follow {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

// eventReader is one who reads events at his own pace.
type eventReader struct {
	m    *Manager
	id   string // "" = all VMs
	tell func(api.Event) error
	seen int64
	over bool // the VM asked for is gone
}

// read tells what is there and returns what announces more.
func (r *eventReader) read(ctx context.Context) (<-chan struct{}, error) {
	list, now, known, changed := r.m.events.after(r.seen)
	if !known {
		if err := r.tell(api.Event{Seq: now, Kind: api.EventMissed, At: time.Now().UTC()}); err != nil {
			return nil, err
		}
		return changed, r.snapshot(ctx)
	}
	for _, ev := range list {
		r.seen = ev.Seq
		if r.id != "" && r.id != ev.ID {
			continue
		}
		if err := r.tell(ev); err != nil {
			return nil, err
		}
		if r.id != "" && ev.State == api.StateDeleted {
			r.over = true
			break
		}
	}
	return changed, nil
}

// snapshot tells how the VMs are. The number is taken before they are read, so
// that a change meanwhile is told twice rather than never.
func (r *eventReader) snapshot(ctx context.Context) error {
	r.m.events.mu.Lock()
	r.seen = r.m.events.seq
	r.m.events.mu.Unlock()
	vs, err := r.m.List(ctx)
	if err != nil {
		return err
	}
	for _, v := range vs {
		if r.id != "" && r.id != v.ID {
			continue
		}
		if err := r.tell(eventOf(api.EventSnapshot, r.seen, v)); err != nil {
			return err
		}
	}
	return nil
}
