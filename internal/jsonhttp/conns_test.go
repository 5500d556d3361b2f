package jsonhttp

import (
	"errors"
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

// callers are connections that come one after the other.
type callers struct {
	net.Listener
	conns []net.Conn
}

func (c *callers) Accept() (net.Conn, error) {
	if len(c.conns) == 0 {
		return nil, errors.New("nobody comes")
	}
	next := c.conns[0]
	c.conns = c.conns[1:]
	return next, nil
}

func TestConnsCountsByUser(t *testing.T) {
	all := [5]*strange{}
	l := &callers{}
	for i := range all {
		all[i] = &strange{}
		l.conns = append(l.conns, all[i])
	}
	c := &conns{Listener: l, limit: 2, uids: map[net.Conn]uint32{}, open: map[uint32]int{0: 2}} // another user's do not count
	want := func(who *strange) {
		t.Helper()
		if got, err := c.Accept(); err != nil || got != net.Conn(who) {
			t.Errorf("accepted %p, %v", got, err)
		}
	}
	want(all[0])
	want(all[1])
	c.changed(all[0], http.StateActive)
	c.changed(all[0], http.StateHijacked)
	c.changed(all[0], http.StateClosed)
	want(all[2])
	if got, err := c.Accept(); err == nil || !all[3].closed || !all[4].closed || all[1].closed || all[2].closed {
		t.Errorf("%v was accepted beyond the limit: %v", got, err)
	}
	c.changed(all[3], http.StateClosed) // one that never counted
	c.changed(all[1], http.StateClosed)
	c.changed(all[2], http.StateClosed)
	if len(c.uids) != 0 || len(c.open) != 1 {
		t.Errorf("left: %v %v", c.uids, c.open)
	}
}
