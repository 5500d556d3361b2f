package vm

import (
	"context"
	"net"

	"banger/internal/guest"
	"banger/internal/store"
)

// ahead is a connection to a guest's agent that is made while something else is
// done: a guest may take longer to take it than to answer.
type ahead struct {
	conn <-chan agentConn // one value, then closed
	done context.CancelFunc
}

type agentConn struct {
	*net.UnixConn
	err error
}

// connectAhead begins to connect, unless a spare connection is there. The caller
// closes what it gets. It is not for a frozen guest, which takes no connection.
func (m *Manager) connectAhead(ctx context.Context, v *store.VM) ahead {
	// Who asks for a stop cannot call it back.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), agentTime)
	ready := make(chan agentConn, 1)
	connect := func() {
		defer close(ready)
		c, err := m.jailOf(v).dialGuest(ctx, guest.ControlPort)
		ready <- agentConn{c, err}
	}
	if u := m.spares.take(v, guest.ControlPort); u != nil {
		ready <- agentConn{u, nil}
		close(ready)
	} else {
		go connect()
	}
	return ahead{ready, cancel}
}

// agent is a client of the guest that begins with this connection.
func (a ahead) agent(j jail) *guest.Client {
	return guest.NewClient(func(ctx context.Context, port uint32) (net.Conn, error) {
		select {
		case c, ok := <-a.conn:
			if ok {
				if c.err != nil {
					return nil, c.err
				}
				return c.UnixConn, nil
			}
			return j.dialGuest(ctx, port)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
}

// close gives up a connection that nobody took.
func (a ahead) close() {
	a.done()
	if c, ok := <-a.conn; ok && c.err == nil {
		_ = c.Close()
	}
}
