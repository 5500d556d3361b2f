package vm

import (
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
	"banger/internal/store"
)

// spareTime is how long a connection that nobody uses is kept: less than the
// agent waits for a request on one, and not so long that it matters.
const spareTime = time.Minute

// spares are connections to agents, at most one for each VM, on which nothing
// was said yet. A connection takes the guest longer than many a command, and
// commands come in groups: so one is made ahead when a session has ended, while
// nobody waits. A VM that nobody asks for anything has none. The zero value is
// ready for use.
type spares struct {
	mu     sync.Mutex
	byID   map[string]*spare // guarded by mu
	closed bool              // guarded by mu
}

type spare struct {
	conn  *net.UnixConn
	since time.Time // of the VM's start: another one has another guest
	end   *time.Timer
}

// wanted tells whether a spare connection is of use.
func (s *spares) wanted(v *store.VM, port uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return port == guest.ControlPort && s.byID[v.ID] == nil && !s.closed
}

// put keeps conn, which is v's guest's and no longer the caller's.
func (s *spares) put(v *store.VM, conn *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.byID[v.ID] != nil {
		_ = conn.Close()
		return
	}
	if s.byID == nil {
		s.byID = map[string]*spare{}
	}
	one := &spare{conn: conn, since: v.StartedAt}
	one.end = time.AfterFunc(spareTime, func() { s.drop(v.ID, one) })
	s.byID[v.ID] = one
}

func (s *spares) drop(id string, one *spare) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[id] == one {
		delete(s.byID, id)
		_ = one.conn.Close()
	}
}

// forget is for a VM that has ended.
func (s *spares) forget(id string) {
	s.mu.Lock()
	one := s.byID[id]
	s.mu.Unlock()
	if one != nil {
		one.end.Stop()
		s.drop(id, one)
	}
}

// take returns the spare connection to v's guest, or nil if there is none that
// is good.
func (s *spares) take(v *store.VM, port uint32) *net.UnixConn {
	if port != guest.ControlPort {
		return nil
	}
	s.mu.Lock()
	one := s.byID[v.ID]
	delete(s.byID, v.ID)
	s.mu.Unlock()
	if one == nil {
		return nil
	}
	one.end.Stop()
	if !one.since.Equal(v.StartedAt) || !silent(one.conn) {
		_ = one.conn.Close()
		return nil
	}
	return one.conn
}

// silent tells whether the other end is there and has said nothing.
func silent(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	err = raw.Control(func(fd uintptr) {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		alive = errors.Is(err, unix.EAGAIN)
	})
	return err == nil && alive
}

func (s *spares) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for id, one := range s.byID {
		one.end.Stop()
		_ = one.conn.Close()
		delete(s.byID, id)
	}
}
