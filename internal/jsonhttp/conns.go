package jsonhttp

import (
	"net"
	"net/http"
	"sync"
)

// LimitConns makes s hold at most limit connections of each uid at a time, of
// those that come by the listener it returns. What comes beyond is closed at once,
// at the least possible cost, so that who opens too many hinders nobody of another
// uid, root above all. A connection that was hijacked does not count any more.
// Call it before s serves.
func LimitConns(s *http.Server, l net.Listener, limit int) net.Listener {
	c := &conns{Listener: l, limit: limit, uids: map[net.Conn]uint32{}, open: map[uint32]int{}}
	s.ConnState = c.changed
	return c
}

// conns counts connections. http.Server tells of each when it is closed or
// hijacked.
type conns struct {
	net.Listener
	limit int

	mu   sync.Mutex
	uids map[net.Conn]uint32 // of those that count; guarded by mu
	open map[uint32]int      // guarded by mu
}

func (c *conns) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil || c.add(conn) {
			return conn, err
		}
		_ = conn.Close() // whoever it was has too many
	}
}

func (c *conns) changed(conn net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		c.remove(conn)
	}
}

func (c *conns) add(conn net.Conn) bool {
	// Those whose uid is not known are refused later, see OnlyUIDs; until then
	// they share one count.
	uid := ^uint32(0)
	if u, ok := conn.(*net.UnixConn); ok {
		if known, err := PeerUID(u); err == nil {
			uid = known
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[uid] >= c.limit {
		return false
	}
	c.uids[conn] = uid
	c.open[uid]++
	return true
}

func (c *conns) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	uid, counted := c.uids[conn]
	if !counted {
		return
	}
	delete(c.uids, conn)
	if c.open[uid]--; c.open[uid] == 0 {
		delete(c.open, uid)
	}
}
