package agent

import (
	"bufio"
	"net"
	"sync"
	"sync/atomic"
)

// sessions counts the connections on which somebody works in the guest:
// commands, and ssh clients with their shells and transfers.
type sessions struct{ open atomic.Int64 }

// counted makes r count what it takes over.
func (s *sessions) counted(r route) route {
	handle := r.handle
	r.handle = func(body []byte) (any, error) {
		answer, err := handle(body)
		take, ok := answer.(takeover)
		if err != nil || !ok {
			return answer, err
		}
		return takeover(func(conn net.Conn, r *bufio.Reader) {
			s.open.Add(1)
			defer s.open.Add(-1)
			take(conn, r)
		}), nil
	}
	return r
}

// listener counts the connections that l accepts.
func (s *sessions) listener(l net.Listener) net.Listener { return countingListener{l, s} }

type countingListener struct {
	net.Listener
	sessions *sessions
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.sessions.open.Add(1)
	return &countedConn{Conn: c, sessions: l.sessions}, nil
}

type countedConn struct {
	net.Conn
	sessions *sessions
	once     sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.sessions.open.Add(-1) })
	return c.Conn.Close()
}
