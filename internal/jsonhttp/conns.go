package jsonhttp

import (
	"net"
	"net/http"
	"sync"
)

// LimitConns makes s hold at most limit connections of each uid at a time and
// close at once what comes beyond, so that who opens too many hinders nobody of
// another uid, root above all. A connection that was hijacked does not count any
// more. Call it before s serves.
func LimitConns(s *http.Server, limit int) {
	c := &conns{limit: limit, uids: map[net.Conn]uint32{}, open: map[uint32]int{}}
	s.ConnState = c.changed
}

// conns counts connections. http.Server tells of each when it is new, in turn,
// and when it is closed or hijacked.
type conns struct {
	limit int

	mu   sync.Mutex
	uids map[net.Conn]uint32 // of those that count; guarded by mu
	open map[uint32]int      // guarded by mu
}

func (c *conns) changed(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if !c.add(conn) {
			_ = conn.Close() // the server finds out when it reads
		}
	case http.StateClosed, http.StateHijacked:
		c.remove(conn)
	case http.StateActive, http.StateIdle:
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
