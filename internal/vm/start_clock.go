package vm

import (
	"context"
	"fmt"
	"time"
)

// startClock bounds a start, except for what takes as long as a disk is large.
type startClock struct {
	timer *time.Timer
	end   time.Time
	done  context.CancelCauseFunc
}

// newStartClock returns a context that ends when the start has taken limit.
func newStartClock(ctx context.Context, limit time.Duration) (context.Context, *startClock) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &startClock{done: cancel, end: time.Now().Add(limit), timer: time.AfterFunc(limit, func() {
		cancel(fmt.Errorf("it took longer than start_timeout (%s)", limit))
	})}
}

// without runs f and does not count its time.
func (c *startClock) without(f func() error) error {
	if !c.timer.Stop() {
		return f() // over: its context tells f so
	}
	left := time.Until(c.end)
	defer func() {
		c.end = time.Now().Add(left)
		c.timer.Reset(left)
	}()
	return f()
}

func (c *startClock) stop() {
	c.timer.Stop()
	c.done(nil)
}
