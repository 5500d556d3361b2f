package doctor

import (
	"context"
	"errors"
	"testing"
	"time"

	"banger/api"
)

func TestClock(t *testing.T) {
	h := tree(t, nil)
	h.Record.InstalledAt = "2026-11-24T12:00:00Z"
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	h.Now = func() time.Time { return now }
	says := func(out string, err error) {
		h.Run = func(context.Context, ...string) (string, error) { return out, err }
	}
	check(t, "without timedatectl", h.clock(t.Context()), api.CheckWarn, "cannot be told: there is no such program")
	says("", errors.New("no bus"))
	check(t, "without timedated", h.clock(t.Context()), api.CheckWarn, "cannot be told: no bus")
	says("perhaps\n", nil)
	check(t, "another answer", h.clock(t.Context()), api.CheckWarn, "cannot be told")
	says("yes\n", nil)
	check(t, "kept", h.clock(t.Context()), api.CheckPass, "a service keeps it")
	put(t, h, "/run/systemd/timesync/synchronized", "")
	says("no\n", nil)
	check(t, "no longer kept", h.clock(t.Context()), api.CheckWarn, "nothing keeps it")
	says("", errors.New("no bus"))
	check(t, "timesyncd", h.clock(t.Context()), api.CheckPass, "timesyncd has set it")
	now = now.Add(-time.Second)
	says("yes\n", nil)
	check(t, "before", h.clock(t.Context()), api.CheckFail, "before banger was installed")
	h.Record.InstalledAt = ""
	check(t, "no record", h.clock(t.Context()), api.CheckWarn, "no time")
}
