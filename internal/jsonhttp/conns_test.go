package jsonhttp

import (
	"net"
	"net/http"
	"testing"
)

// strange is a connection of somebody whose uid is not known.
type strange struct {
	net.Conn
	closed bool
}

func (s *strange) Close() error { s.closed = true; return nil }

func TestConnsCountsByUser(t *testing.T) {
	c := &conns{limit: 2, uids: map[net.Conn]uint32{}, open: map[uint32]int{0: 2}}
	first, second, third := &strange{}, &strange{}, &strange{}
	for _, conn := range []net.Conn{first, second, third} {
		c.changed(conn, http.StateNew)
	}
	if first.closed || second.closed || !third.closed {
		t.Errorf("closed: %v %v %v; another user's connections count", first.closed, second.closed, third.closed)
	}
	c.changed(third, http.StateClosed) // of one that never counted
	c.changed(first, http.StateHijacked)
	c.changed(first, http.StateClosed)
	fourth, fifth := &strange{}, &strange{}
	c.changed(fourth, http.StateNew)
	c.changed(fifth, http.StateNew)
	if fourth.closed || !fifth.closed {
		t.Errorf("closed: %v %v", fourth.closed, fifth.closed)
	}
	c.changed(second, http.StateClosed)
	c.changed(fourth, http.StateClosed)
	if len(c.uids) != 0 || len(c.open) != 1 {
		t.Errorf("left: %v %v", c.uids, c.open)
	}
}
