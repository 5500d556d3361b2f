package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Times of a question that goes out. Clients ask again after five seconds.
const (
	tryTimeout     = 2 * time.Second
	forwardTimeout = 4 * time.Second
	maxUpstreams   = 3
)

// forward asks the host's resolvers. What goes out is a question of our own
// making with a random id, from a port the kernel picks for it alone; what
// comes back has to be the answer to that.
func (s *Server) forward(ctx context.Context, q query, tcp bool) []byte {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	ask, err := q.upstream()
	if err != nil {
		return q.refusal(dnsmessage.RCodeFormatError)
	}
	network := "udp"
	if tcp {
		network = "tcp"
	}
	upstreams, err := s.Upstreams()
	errs := []error{err}
	for _, to := range upstreams[:min(len(upstreams), maxUpstreams)] {
		if to.Addr() == s.Network.Addr() {
			continue // that is this server
		}
		answer, err := exchange(ctx, network, to, ask)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !tcp && len(answer) > q.size {
			return q.truncated()
		}
		binary.BigEndian.PutUint16(answer, q.id)
		return answer
	}
	s.Log.Debug("cannot forward a question", "err", errors.Join(errs...))
	return q.refusal(dnsmessage.RCodeServerFailure)
}

// upstream is q as it is sent on.
func (q query) upstream() ([]byte, error) {
	var id [2]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: binary.BigEndian.Uint16(id[:]), RecursionDesired: true},
		Questions: []dnsmessage.Question{q.question},
	}
	if q.edns {
		m.Additionals = []dnsmessage.Resource{optRecord(0, q.dnssec)}
	}
	return m.Pack()
}

// exchange asks one resolver once.
func exchange(ctx context.Context, network string, to netip.AddrPort, ask []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // a closed one is interrupted already
	defer stop()
	if network == "tcp" {
		if err := writeFramed(conn, ask); err != nil {
			return nil, err
		}
		answer, err := readFramed(conn, 1<<16)
		if err == nil && !answers(answer, ask) {
			err = errors.New("the answer is to another question")
		}
		return answer, err
	}
	if _, err := conn.Write(ask); err != nil {
		return nil, err
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], ask) { // else somebody guesses; the answer may still come
			return buf[:n], nil
		}
	}
}

// answers reports whether msg is a response to the question ask.
func answers(msg, ask []byte) bool {
	var p, asked dnsmessage.Parser
	head, err := p.Start(msg)
	want, wantErr := asked.Start(ask)
	if err != nil || wantErr != nil || !head.Response || head.ID != want.ID || head.OpCode != 0 {
		return false
	}
	got, err := p.Question()
	q, wantErr := asked.Question()
	return err == nil && wantErr == nil && got.Type == q.Type && got.Class == q.Class &&
		strings.EqualFold(got.Name.String(), q.Name.String())
}

// readFramed and writeFramed are for TCP: a length of two bytes comes first.
func readFramed(r io.Reader, most int) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > most {
		return nil, fmt.Errorf("a message of %d bytes is longer than %d", n, most)
	}
	msg := make([]byte, n)
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeFramed(w io.Writer, msg []byte) error {
	if len(msg) >= 1<<16 {
		return errors.New("a message is too long")
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

// HostResolvers reads the resolvers of a file like /etc/resolv.conf, anew each
// time, since the host moves between networks.
func HostResolvers(file string) ([]netip.AddrPort, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot tell the host's resolvers: %w", err)
	}
	var found []netip.AddrPort
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(f[1]); err == nil {
			found = append(found, netip.AddrPortFrom(addr, 53))
		}
	}
	return found, nil
}
