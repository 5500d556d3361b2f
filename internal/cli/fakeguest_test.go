package cli

import (
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"

	"banger/internal/guest/agent"
)

// fakeGuest is the agent's own code running commands on this host.
type fakeGuest struct {
	accepts chan net.Conn
	closed  chan struct{}
	mu      sync.Mutex
	conns   []net.Conn
}

func newFakeGuest(t testing.TB) *fakeGuest {
	t.Helper()
	g := &fakeGuest{accepts: make(chan net.Conn), closed: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = agent.ServeExec(g, slog.New(slog.NewTextHandler(io.Discard, nil)))
	}()
	t.Cleanup(func() {
		close(g.closed)
		<-ended
		g.hangUp()
	})
	return g
}

// serve is a connection to the guest's control port.
func (g *fakeGuest) serve(c net.Conn) {
	g.mu.Lock()
	g.conns = append(g.conns, c)
	g.mu.Unlock()
	select {
	case g.accepts <- c:
	case <-g.closed:
		_ = c.Close()
	}
}

// hangUp breaks all connections, as a VMM that dies does.
func (g *fakeGuest) hangUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		_ = c.Close()
	}
}

func (g *fakeGuest) Accept() (net.Conn, error) {
	select {
	case c := <-g.accepts:
		return c, nil
	case <-g.closed:
		return nil, net.ErrClosed
	}
}

func (g *fakeGuest) Close() error   { return nil }
func (g *fakeGuest) Addr() net.Addr { return &net.UnixAddr{} }
