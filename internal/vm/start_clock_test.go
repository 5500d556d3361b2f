package vm

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestStartClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c := newStartClock(t.Context(), time.Minute)
		defer c.stop()
		time.Sleep(40 * time.Second)
		_ = c.without(func() error { time.Sleep(time.Hour); return nil })
		time.Sleep(19 * time.Second)
		if ctx.Err() != nil {
			t.Fatalf("an hour that does not count: %v", context.Cause(ctx))
		}
		time.Sleep(2 * time.Second)
		if ctx.Err() == nil || !strings.Contains(context.Cause(ctx).Error(), "start_timeout (1m0s)") {
			t.Fatalf("after a minute: %v", context.Cause(ctx))
		}
		_ = c.without(func() error { return nil }) // harmless
	})
}
