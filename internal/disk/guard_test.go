package disk

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const gib = int64(1) << 30

// filesystem is a fake that fills at a rate, and notes how often it was asked.
type filesystem struct {
	mu    sync.Mutex // guards all of it
	free  int64
	rate  int64 // bytes a second that are written to it
	since time.Time
	err   error
	asked int
}

func (f *filesystem) set(free int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free, f.rate, f.since, f.err = free, 0, time.Now(), err
}

func (f *filesystem) statfs(dir string) (int64, error) {
	if dir != "/state" {
		return 0, errors.New("asked of another directory")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return f.free - int64(time.Since(f.since).Seconds()*float64(f.rate)), f.err
}

func (f *filesystem) questions() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

type change struct {
	low  bool
	free int64
	at   time.Duration
}

// watch runs a guard over f in a bubble of fake time.
func watch(t *testing.T, f *filesystem, script func(changes func() []change)) {
	t.Helper()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var got []change
		start := time.Now()
		f.since = start
		g := &Guard{Dir: "/state", Reserve: 2 * gib, Resume: 3 * gib, free: f.statfs,
			Changed: func(low bool, free int64) {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, change{low, free, time.Since(start)})
			}}
		done := make(chan struct{})
		go func() { defer close(done); g.Run(ctx) }()
		script(func() []change {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(got)
		})
		cancel()
		<-done
	})
}

func lows(changes []change) (out []bool) {
	for _, c := range changes {
		out = append(out, c.low)
	}
	return out
}

func TestGuardTellsEachChangeOnce(t *testing.T) {
	f := &filesystem{free: 100 * gib}
	watch(t, f, func(changes func() []change) {
		for _, step := range []struct {
			free int64
			want []bool
		}{
			{100 * gib, nil},
			{2 * gib, nil},                 // exactly the reserve
			{2*gib - 1, []bool{true}},      // below
			{gib, []bool{true}},            // further
			{0, []bool{true}},              //
			{3*gib - 1, []bool{true}},      // above the reserve, but not enough
			{3 * gib, []bool{true, false}}, // enough
			{2*gib + 1, []bool{true, false}},
			{-5, []bool{true, false, true}},
			{50 * gib, []bool{true, false, true, false}},
		} {
			f.set(step.free, nil)
			time.Sleep(latest + time.Millisecond)
			if got := lows(changes()); !slices.Equal(got, step.want) {
				t.Fatalf("at %d: %v, want %v", step.free, got, step.want)
			}
		}
	})
}

func TestGuardIsLowFromTheStart(t *testing.T) {
	f := &filesystem{free: gib}
	watch(t, f, func(changes func() []change) {
		if got := changes(); len(got) != 1 || !got[0].low || got[0].at != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// However fast it is written to, up to full speed, it is noticed while most of
// the reserve is left; and a filesystem with much room is hardly asked.
func TestGuardIsInTime(t *testing.T) {
	for _, rate := range []int64{10 << 20, 500 << 20, 2 * gib, speed} {
		f := &filesystem{free: 200 * gib, rate: rate}
		watch(t, f, func(changes func() []change) {
			time.Sleep(time.Duration(198*float64(gib)/float64(rate)*float64(time.Second)) + time.Second)
			got := changes()
			if len(got) != 1 || !got[0].low {
				t.Fatalf("%d MiB/s: %+v", rate>>20, got)
			}
			if late := 2*gib - got[0].free; late > rate/8 {
				t.Errorf("%d MiB/s: %d MiB of the reserve were gone", rate>>20, late>>20)
			}
			t.Logf("%5d MiB/s: asked %d times in %s", rate>>20, f.questions(), got[0].at)
		})
	}
	f := &filesystem{free: 200 * gib}
	watch(t, f, func(changes func() []change) {
		time.Sleep(time.Hour)
		if got := changes(); len(got) != 0 || f.questions() > 361 {
			t.Errorf("asked %d times in an hour, %v", f.questions(), got)
		}
	})
}

// A question without an answer changes nothing, and is asked again.
func TestGuardGoesOnBlind(t *testing.T) {
	f := &filesystem{free: gib}
	watch(t, f, func(changes func() []change) {
		changes()
		f.set(100*gib, errors.New("input/output error"))
		time.Sleep(time.Minute)
		if got := lows(changes()); !slices.Equal(got, []bool{true}) {
			t.Errorf("%v", got)
		}
		f.set(100*gib, nil)
		time.Sleep(whileLow)
		if got := lows(changes()); !slices.Equal(got, []bool{true, false}) {
			t.Errorf("%v", got)
		}
	})
}

func TestFree(t *testing.T) {
	if n, err := Free(t.TempDir()); err != nil || n <= 0 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := Free("/no/such/directory"); err == nil {
		t.Error("no error")
	}
}
