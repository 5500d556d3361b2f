// Package server is banger-helper: the verbs that need root. It is the only
// code of banger that runs with rights, so it knows a closed list of verbs,
// makes every name and path from a VM's id, reads nothing a guest wrote, and
// links next to nothing. Its files are one job each: slots, blobs, loop and dm
// devices, jails, the unit, exit records; lock.go tells who waits for whom.
//
// What is held here in memory is worth nothing to anybody else: after a
// restart everything is found again by name. The exception is the descriptor
// of a network namespace between vm.launch and vm.handover, which systemd keeps
// over a restart (netns.go).
package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"banger/internal/installed"
	"banger/internal/jsonhttp"
)

const (
	// idleTime is how long the helper stays when there is nothing to do; its
	// socket starts it again.
	idleTime = 5 * time.Minute
	// drainTime is how long requests under way may take when it is stopped.
	drainTime = 40 * time.Second
)

// Server answers the helper's verbs.
type Server struct {
	record   installed.Record
	places   Places
	slots    registry
	gates    gates
	units    units
	checks   checkUnits // of disks, by vm.fsck
	trials   checkUnits // of KVM, by host.check
	net      *network
	cgroups  string        // of the VMs' units
	blobTurn chan struct{} // held while a blob is stored
	hostTurn chan struct{} // held while host.check runs its programs
	long     chan struct{} // held while a long request arrives
	pid      int

	mu    sync.Mutex
	netns map[string]*os.File // by VM id, from launch to handover; guarded by mu

	pace   *rate.Limiter // of the owner's requests
	active atomic.Int32  // requests under way
	last   atomic.Int64  // when the last one ended, in Unix nanoseconds
}

// New prepares the directories in p and returns a server for the installation.
func New(record installed.Record, p Places) (*Server, error) {
	if err := p.make(); err != nil {
		return nil, err
	}
	bus := &systemBus{}
	n, err := newNetwork(record, p, bus)
	if err != nil {
		return nil, err
	}
	return &Server{
		record:   record,
		places:   p,
		slots:    registry{places: p, base: record.UIDBase, count: record.UIDCount},
		units:    &systemd{bus, vmKind},
		checks:   &systemd{bus, checkKind},
		trials:   &systemd{bus, trialKind},
		net:      n,
		cgroups:  "/sys/fs/cgroup/banger.slice", // by Slice=banger.slice
		blobTurn: make(chan struct{}, 1),
		hostTurn: make(chan struct{}, 1),
		long:     make(chan struct{}, maxLong),
		pid:      os.Getpid(),
		netns:    map[string]*os.File{},
		pace:     newPace(),
	}, nil
}

// newPace lets a burst of requests pass and spreads out what comes beyond it.
func newPace() *rate.Limiter { return rate.NewLimiter(perSecond, burst) }

// Serve answers requests until ctx ends, or until there has been nothing to do
// for a while and no VM is left. It waits for requests under way.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv, l := s.httpServer(l)
	failed := make(chan error, 2)
	go func() { failed <- srv.Serve(l) }()
	watchCtx, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	go func() {
		if err := s.net.watch(watchCtx); err != nil {
			failed <- err
		}
	}()
	s.last.Store(time.Now().UnixNano())
	tick := time.NewTicker(idleTime / 5)
	defer tick.Stop()
	for idle := false; !idle && ctx.Err() == nil; {
		select {
		case err := <-failed:
			return fmt.Errorf("cannot serve: %w", err)
		case <-tick.C:
			idle = s.idle()
		case <-ctx.Done():
		}
	}
	slog.Info("leaving", "asked", ctx.Err() != nil)
	drain, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	return srv.Shutdown(drain)
}

// httpServer serves one request for each connection: a caller never holds a
// connection of a helper that has gone meanwhile.
func (s *Server) httpServer(l net.Listener) (*http.Server, net.Listener) {
	srv := jsonhttp.NewServer(logged(s.paced(arriveInTime(jsonhttp.OnlyUIDs(s.Handler(), uint32(s.record.UID))))))
	srv.SetKeepAlivesEnabled(false)
	return srv, jsonhttp.LimitConns(srv, l, maxConns)
}

// idle reports whether nobody would miss this process. A jail stands for a VM.
func (s *Server) idle() bool {
	if s.active.Load() > 0 || time.Since(time.Unix(0, s.last.Load())) < idleTime {
		return false
	}
	jails, err := os.ReadDir(s.places.Jails)
	return err == nil && len(jails) == 0
}
