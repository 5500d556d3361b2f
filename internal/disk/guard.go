package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// Free returns how many bytes an ordinary user can still write in the
// filesystem that dir is on.
func Free(dir string) (int64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Bavail) * st.Frsize, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("cannot tell how much room %s has: %w", dir, err)
		}
	}
}

// Guard watches the free space of a filesystem, so that what writes there can be
// stopped in time: a full one makes the disks of running VMs invalid.
//
// It polls. The kernel tells nobody that a filesystem fills up: inotify and
// fanotify tell of files, and quota warnings only of users with quotas. So the
// question is only how often, and Guard asks as rarely as it can: the next time
// when the space could be used up by then, were it written to at full speed.
type Guard struct {
	Dir     string
	Reserve int64 // below this it is low
	Resume  int64 // at this it is no longer low; more than Reserve, so that it does not flutter
	// Low is what is known at the begin.
	Low bool
	// Changed is told each change, from the goroutine of Run, which goes on
	// when it returns.
	Changed func(low bool, free int64)

	free func(dir string) (int64, error) // Free, but in tests
}

// The shortest pause is a small cost (a system call takes a microsecond); what
// can be written in it, and until all VMs are paused, the reserve must hold. The
// longest is for changes that no writing explains, e.g. a mount in place of the
// directory.
const (
	speed    = 4 << 30 // bytes a second, faster than a disk takes them for long
	soonest  = 100 * time.Millisecond
	latest   = 10 * time.Second
	whileLow = time.Second // people free space; that is soon enough
)

// Run watches until ctx ends. When the space cannot be told, what was known last
// stays true.
func (g *Guard) Run(ctx context.Context) {
	free := g.free
	if free == nil {
		free = Free
	}
	low, blind := g.Low, false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		n, err := free(g.Dir)
		if (err != nil) != blind {
			blind = err != nil
			slog.Warn("watching free space", "dir", g.Dir, "err", err)
		}
		if err == nil && low != g.isLow(low, n) {
			low = !low
			g.Changed(low, n)
		}
		timer.Reset(g.pause(low, blind, n))
	}
}

func (g *Guard) isLow(before bool, free int64) bool {
	if before {
		return free < max(g.Resume, g.Reserve)
	}
	return free < g.Reserve
}

// pause is how long it is certain that nothing changes.
func (g *Guard) pause(low, blind bool, free int64) time.Duration {
	if low || blind {
		return whileLow
	}
	// In milliseconds, since nanoseconds would overflow with large filesystems.
	return min(max(time.Duration((free-g.Reserve)/(speed/1000))*time.Millisecond, soonest), latest)
}
