package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// idleTimeout is for a TCP connection on which nothing is asked.
const idleTimeout = 10 * time.Second

// Server answers from Table. All fields must be set before Serve and not be
// changed afterwards.
type Server struct {
	Table *Table
	Zone  string // "vm"
	// Network is the guests', with the bridge's own address: a client in it is
	// a guest, that address itself and loopback are the host, and nobody else
	// is answered.
	Network netip.Prefix
	// Bridge is the device by which guests' packets must have come; empty only
	// in tests.
	Bridge string
	// MayForward tells whether a guest's other questions are answered.
	MayForward func(client netip.Addr) bool
	// MayResolve tells whether a guest may know of the one at target.
	MayResolve func(client, target netip.Addr) bool
	// Upstreams are the host's resolvers, see HostResolvers.
	Upstreams func() ([]netip.AddrPort, error)
	Log       *slog.Logger

	limits *limits
	work   sync.WaitGroup
}

// Serve answers on all sockets until ctx ends, and closes them. It returns when
// nothing of it runs any more; an error is a socket that cannot be used.
func (s *Server) Serve(ctx context.Context, packets []net.PacketConn, listeners []net.Listener) error {
	s.limits = newLimits(time.Now)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, p := range packets {
		s.work.Go(func() { cancel(s.servePackets(ctx, p)) })
	}
	for _, l := range listeners {
		s.work.Go(func() { cancel(s.serveListener(ctx, l)) })
	}
	<-ctx.Done()
	for _, p := range packets {
		_ = p.Close()
	}
	for _, l := range listeners {
		_ = l.Close()
	}
	s.work.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return fmt.Errorf("cannot serve names any more: %w", err)
	}
	return nil
}

func (s *Server) servePackets(ctx context.Context, p net.PacketConn) error {
	in, err := newPacketReader(p, s.Bridge)
	if err != nil {
		return err
	}
	buf := make([]byte, maxQuery)
	for {
		n, from, bridged, err := in.read(buf)
		if err != nil {
			if !s.again(ctx, err) {
				return ctx.Err()
			}
			continue
		}
		client := from.Addr().Unmap()
		if !s.knows(client) || (s.isGuest(client) && !bridged) || !s.limits.query(client) {
			continue
		}
		reply := func(answer []byte) {
			if answer != nil {
				_, _ = in.conn.WriteToUDPAddrPort(answer, from) // it asks again
			}
		}
		s.answer(ctx, buf[:n], client, false, reply, func(f func()) { s.work.Go(f) })
	}
}

// again waits a moment after an error that is not the server's end, such as too
// many open files. There is no event for its being over.
func (s *Server) again(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	s.Log.Warn("cannot hear who asks for names", "err", err)
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// answer calls reply with the answer, or with nil if there is to be none. What
// has to wait for others does so within later.
func (s *Server) answer(ctx context.Context, msg []byte, client netip.Addr, tcp bool, reply func([]byte), later func(func())) {
	q, err := parseQuery(msg)
	if err != nil {
		reply(nil)
		return
	}
	if q.refuse != 0 {
		reply(q.refusal(q.refuse))
		return
	}
	if answer, ours := s.authority(q, client); ours {
		if !tcp && len(answer) > q.size {
			answer = q.truncated()
		}
		reply(answer)
		return
	}
	if !s.isGuest(client) || !s.MayForward(client) || !forwardable(q.question.Type) {
		reply(q.refusal(dnsmessage.RCodeRefused))
		return
	}
	done, ok := s.limits.forward(client)
	if !ok {
		reply(q.refusal(dnsmessage.RCodeServerFailure))
		return
	}
	later(func() {
		defer done()
		reply(s.forward(ctx, q, tcp))
	})
}

// forwardable keeps transfers of zones, and questions whose only use is a large
// answer, from going out.
func forwardable(t dnsmessage.Type) bool {
	const ixfr = 251
	return t != dnsmessage.TypeAXFR && t != ixfr && t != dnsmessage.TypeALL && t != dnsmessage.TypeOPT
}

func (s *Server) serveListener(ctx context.Context, l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			if !s.again(ctx, err) {
				return ctx.Err()
			}
			continue
		}
		// The handshake has proved the address: what leads to a guest's goes
		// through the bridge.
		client, ok := tcpClient(conn)
		if !ok || !s.knows(client) {
			_ = conn.Close()
			continue
		}
		done, ok := s.limits.conn(client)
		if !ok {
			_ = conn.Close()
			continue
		}
		s.work.Go(func() {
			defer done()
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // a closed one is interrupted already
			defer stop()
			s.serveConn(ctx, conn, client)
		})
	}
}

// serveConn answers one question after the other, in order.
func (s *Server) serveConn(ctx context.Context, conn net.Conn, client netip.Addr) {
	for ctx.Err() == nil {
		_ = conn.SetDeadline(time.Now().Add(idleTimeout)) // a dead connection fails below
		msg, err := readFramed(conn, maxQuery)
		if err != nil || !s.limits.query(client) {
			return
		}
		var sent bool
		reply := func(answer []byte) { sent = answer != nil && writeFramed(conn, answer) == nil }
		s.answer(ctx, msg, client, true, reply, func(f func()) { f() })
		if !sent {
			return
		}
	}
}

func tcpClient(conn net.Conn) (netip.Addr, bool) {
	a, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	return a.AddrPort().Addr().Unmap(), true
}

// isGuest reports whether client is a guest, and not the host itself.
func (s *Server) isGuest(client netip.Addr) bool {
	return s.Network.Contains(client) && client != s.Network.Addr()
}

// knows reports whether client is anybody to answer.
func (s *Server) knows(client netip.Addr) bool {
	return s.Network.Contains(client) || client.IsLoopback()
}
