package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"banger/api"
	"banger/internal/vm"
)

// How long an ephemeral VM lives without anybody who holds its lease.
const (
	// leaseStart is for a VM that was just made, and for all of them after a
	// start of bangerd: whoever lives has noticed by then that we are back.
	leaseStart = 30 * time.Second
	// leaseGrace is for one whose holder has just gone, or lost its connection.
	leaseGrace = 5 * time.Second
	// leaseRetry is the pause after a delete that failed.
	leaseRetry = time.Minute
)

// leases knows who still wants an ephemeral VM. A lease is a connection, which
// breaks however its holder ends; nothing about it is stored.
type leases struct {
	expired func(id string)

	mu      sync.Mutex
	closed  bool
	holders map[string]int
	waiting map[string]*time.Timer
}

func newLeases(expired func(id string)) *leases {
	return &leases{expired: expired, holders: map[string]int{}, waiting: map[string]*time.Timer{}}
}

// expect gives the VM that long to be held by somebody.
func (l *leases) expect(id string, within time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.holders[id] > 0 {
		return
	}
	if t := l.waiting[id]; t != nil {
		t.Stop()
	}
	var t *time.Timer
	t = time.AfterFunc(within, func() {
		l.mu.Lock()
		mine := l.waiting[id] == t
		if mine {
			delete(l.waiting, id)
		}
		l.mu.Unlock()
		if mine {
			l.expired(id)
		}
	})
	l.waiting[id] = t
}

// hold keeps the VM until release is called.
func (l *leases) hold(id string) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holders[id]++
	if t := l.waiting[id]; t != nil {
		t.Stop()
		delete(l.waiting, id)
	}
	return func() {
		l.mu.Lock()
		last := l.holders[id] == 1
		if l.holders[id]--; last {
			delete(l.holders, id)
		}
		l.mu.Unlock()
		if last {
			l.expect(id, leaseGrace)
		}
	}
}

// close lets no lease run out any more.
func (l *leases) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for id, t := range l.waiting {
		t.Stop()
		delete(l.waiting, id)
	}
}

// expectLeases gives those who hold a lease the time to come back after
// bangerd was away.
func (d *Daemon) expectLeases(ctx context.Context) error {
	vs, err := d.vms.List(ctx)
	for _, v := range vs {
		if v.Ephemeral {
			d.leases.expect(v.ID, leaseStart)
		}
	}
	return err
}

// holdLease answers at once and keeps the connection until it breaks.
func (d *Daemon) holdLease(w http.ResponseWriter, r *http.Request) {
	v, err := d.vms.Get(r.Context(), r.PathValue("ref"))
	if err == nil && !v.Ephemeral {
		err = api.Conflict("cannot hold VM %q: it was not made to go with a lease", v.Name)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	defer d.leases.hold(v.ID)()
	w.WriteHeader(http.StatusOK)
	if http.NewResponseController(w).Flush() != nil {
		return
	}
	ctx, stop := d.untilEnding(r.Context())
	defer stop()
	<-ctx.Done()
}

// errAbandoned ends what is under way on a VM that nobody waits for.
var errAbandoned = fmt.Errorf("%w: whoever wanted the VM has gone", vm.ErrCancelled)

// abandoned deletes a VM whose lease ran out.
func (d *Daemon) abandoned(id string) {
	ctx := context.WithoutCancel(d.ending)
	v, err := d.vms.Get(ctx, id)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Code == api.CodeNotFound {
		return // as it should be: whoever held it has deleted it
	}
	if err == nil {
		d.log.InfoContext(ctx, "nobody holds the lease of a VM any more", "vm", v.ID, "name", v.Name)
		d.ops.cancelOn(id, errAbandoned)
		_, err = d.vmOperation(ctx, "vm.delete", v, func(ctx context.Context, op *operation) error {
			err := d.vms.Delete(ctx, id, true, op)
			if err != nil {
				d.leases.expect(id, leaseRetry)
			}
			return err
		})
	}
	if err != nil {
		d.log.ErrorContext(ctx, "cannot delete a VM whose lease ran out", "vm", id, "error", err)
		d.leases.expect(id, leaseRetry)
	}
}
