package vm

import (
	"context"
	"errors"
	"testing"
	"time"

	"banger/api"
	"banger/internal/store"
)

// collect reads events until f has had enough or there are no more.
func collect(ctx context.Context, m *Manager, q EventQuery, enough func(api.Event) bool) (got []api.Event, err error) {
	err = m.Events(ctx, q, func(e api.Event) error {
		got = append(got, e)
		if enough != nil && enough(e) {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return got, err
}

var errEnough = errors.New("enough")

func zero() *int64 { return new(int64) }

func TestEventsAreToldInOrder(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v := recorded(t, m, "a", api.StateStopped)
	recorded(t, m, "b", api.StateStopped)
	if err := m.setState(t.Context(), v, api.StateFailed, "ill"); err != nil {
		t.Fatal(err)
	}
	name := "c"
	if _, err := m.Change(t.Context(), v.ID, api.VMChange{Name: &name}); err != nil {
		t.Fatal(err)
	}
	if err := m.Delete(t.Context(), v.ID, false, &stages{}); err != nil {
		t.Fatal(err)
	}
	got, err := collect(t.Context(), m, EventQuery{Since: zero()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []api.Event{{Name: "a", Kind: api.EventState, State: api.StateCreated}, {Name: "b", Kind: api.EventState, State: api.StateCreated},
		{Name: "a", Kind: api.EventState, State: api.StateFailed, Reason: "ill"}, {Name: "c", Kind: api.EventRenamed, State: api.StateFailed, Reason: "ill"},
		{Name: "c", Kind: api.EventState, State: api.StateDeleted}}
	if len(got) != len(want) {
		t.Fatalf("%d events: %+v", len(got), got)
	}
	for i, w := range want {
		g := got[i]
		if g.Name != w.Name || g.Kind != w.Kind || g.State != w.State || g.Reason != w.Reason || g.Seq != got[0].Seq+int64(i) || g.At.IsZero() {
			t.Errorf("event %d: %+v, want %+v", i, g, w)
		}
	}
	// Going on from one of them.
	if rest, err := collect(t.Context(), m, EventQuery{Since: &got[2].Seq}, nil); err != nil || len(rest) != 2 || rest[0] != got[3] {
		t.Errorf("%+v, %v", rest, err)
	}
	// How things are, and then nothing.
	if now, err := collect(t.Context(), m, EventQuery{}, nil); err != nil || len(now) != 1 || now[0].Kind != api.EventSnapshot || now[0].Name != "b" || now[0].Seq != got[4].Seq {
		t.Errorf("%+v, %v", now, err)
	}
	if _, err := collect(t.Context(), m, EventQuery{Ref: "a"}, nil); err == nil {
		t.Error("events of a VM that is gone")
	}
}

func TestSlowReadersAreToldAndDelayNobody(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v := recorded(t, m, "a", api.StateStopped)
	entered, leave, caughtUp := make(chan struct{}), make(chan struct{}), make(chan struct{})
	got := make(chan []api.Event)
	go func() {
		var all []api.Event
		_ = m.Events(t.Context(), EventQuery{Since: zero(), Follow: true}, func(e api.Event) error {
			if all = append(all, e); len(all) == 1 {
				close(entered)
				<-leave // reads nothing for now
			}
			if e.Kind == api.EventSnapshot {
				close(caughtUp)
			}
			if e.Kind == api.EventState && e.State == api.StateDeleted {
				return errEnough
			}
			return nil
		})
		got <- all
	}()
	<-entered
	for range 3 * keepEvents {
		m.events.tell(api.EventChanged, v) // would block, if anything did
	}
	close(leave)
	<-caughtUp
	// More than is kept had passed: the reader sees that, then the present.
	m.events.tell(api.EventState, &store.VM{ID: "x", State: api.StateDeleted})
	all := <-got
	if n := len(all); n < 4 || all[1].Kind != api.EventMissed || all[2].Kind != api.EventSnapshot || all[2].Name != "a" || all[n-1].State != api.StateDeleted {
		t.Errorf("%d events: %+v …", len(all), all[:min(len(all), 4)])
	}
}

func TestNumbersOfAnotherLifeAreMissed(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	recorded(t, m, "a", api.StateStopped)
	for _, since := range []int64{1, time.Now().Add(time.Hour).UnixMilli()} {
		got, err := collect(t.Context(), m, EventQuery{Since: &since}, nil)
		if err != nil || len(got) != 2 || got[0].Kind != api.EventMissed || got[1].Kind != api.EventSnapshot || got[1].Seq != got[0].Seq {
			t.Errorf("since %d: %+v, %v", since, got, err)
		}
	}
}

func TestFollowingAVMEndsWithIt(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v := recorded(t, m, "a", api.StateStopped)
	other := recorded(t, m, "b", api.StateStopped)
	done := make(chan []api.Event)
	begun := make(chan struct{})
	go func() {
		got, _ := collect(t.Context(), m, EventQuery{Ref: "a", Follow: true}, func(e api.Event) bool {
			if e.Kind == api.EventSnapshot {
				close(begun)
			}
			return false
		})
		done <- got
	}()
	<-begun
	m.events.tell(api.EventChanged, other)
	if err := m.Delete(t.Context(), v.ID, false, &stages{}); err != nil {
		t.Fatal(err)
	}
	if got := <-done; len(got) != 2 || got[0].Kind != api.EventSnapshot || got[1].State != api.StateDeleted || got[1].Name != "a" {
		t.Errorf("%+v", got)
	}
}
