package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"banger/internal/helper"
)

// Two locks guard a VM, because one cannot do both jobs:
//
//   - Its gate, in this process, is held for a whole verb, so that verbs on one
//     VM come one after the other.
//   - Its lock file is held only while kernel objects are touched, never while
//     waiting for a unit: the unit's end runs "banger-helper cleanup ID", which
//     takes the same lock, and the unit does not end before that returns.
//
// vm.kill takes neither; it only asks systemd.

// gates are mutexes by VM id that give up with a context.
type gates struct {
	mu sync.Mutex
	m  map[string]*gate
}

type gate struct {
	token chan struct{}
	users int // holder and waiters, guarded by gates.mu
}

// enter waits for the VM's gate. The caller must call leave.
func (g *gates) enter(ctx context.Context, id string) (leave func(), err error) {
	g.mu.Lock()
	if g.m == nil {
		g.m = map[string]*gate{}
	}
	e := g.m[id]
	if e == nil {
		e = &gate{token: make(chan struct{}, 1)}
		g.m[id] = e
	}
	e.users++
	g.mu.Unlock()

	drop := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if e.users--; e.users == 0 {
			delete(g.m, id)
		}
	}
	select {
	case e.token <- struct{}{}:
		return func() { <-e.token; drop() }, nil
	case <-ctx.Done():
		drop()
		return nil, ctx.Err()
	}
}

// hold enters the gate of a VM that has a slot, which stays its own until leave: what
// was looked up before may be another VM's by the time the gate opens. The caller must
// call leave.
func (s *Server) hold(ctx context.Context, id string) (slot helper.Slot, leave func(), err error) {
	if leave, err = s.gates.enter(ctx, id); err != nil {
		return slot, nil, err
	}
	if slot, err = s.slots.lookup(id); err != nil {
		leave()
		return slot, nil, err
	}
	return slot, leave, nil
}

// lock takes the lock file called name, shared with other processes. It is
// held for moments only, so waiting for it needs no context. The file goes
// away with the lock: nothing is left behind by ids that came once.
func (p Places) lock(name string) (unlock func() error, err error) {
	path := filepath.Join(p.Locks, name)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("cannot open lock: %w", err)
		}
		if err := flock(f); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot lock %s: %w", path, err), f.Close())
		}
		same, err := stillThere(f, path)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if same {
			return func() error { return errors.Join(os.Remove(path), f.Close()) }, nil
		}
		// The holder before us removed this file. Whoever locks the new one
		// would not see our lock, so take that one.
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

func flock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func stillThere(f *os.File, path string) (bool, error) {
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(mine, named), nil
}

// locked runs f under the lock file called name.
func (p Places) locked(name string, f func() error) error {
	unlock, err := p.lock(name)
	if err != nil {
		return err
	}
	return errors.Join(f(), unlock())
}
