package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/dns/dnsmessage"
)

// nobody is a name that no VM has: an underscore is in none.
const nobody = "_doctor."

// LoopbackNames is where names are served for hosts without systemd-resolved.
const LoopbackNames = "127.0.0.1:10053"

// Names asks for a name that nobody has, where names are served. The bridge's
// address is asked only if there is a bridge: the packet would leave the host.
func (h Host) Names(ctx context.Context, zone string, servers ...string) Finding {
	const fix = "systemctl status banger-dns.socket: another program may have the port; then sudo systemctl restart bangerd.service"
	if _, err := os.Lstat(h.at("/sys/class/net/" + h.Record.Bridge)); err == nil {
		servers = append(servers, net.JoinHostPort(h.Record.Gateway().String(), "53"))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Warn("", "cannot tell whether there is a bridge: %v", err)
	}
	for _, s := range servers {
		if err := askNames(ctx, s, nobody+zone+"."); err != nil {
			return Fail(fix, "names are not served on %s: %v", s, err)
		}
	}
	return Pass("served on %s", list(servers))
}

func askNames(ctx context.Context, server, name string) error {
	head, _, err := question(ctx, server, name)
	if err != nil {
		return err
	}
	if head.RCode != dnsmessage.RCodeNameError || !head.Authoritative {
		return fmt.Errorf("the answer is %s, from somebody who is not in charge of the zone", head.RCode)
	}
	return nil
}

// lookUp asks a server for the IPv4 addresses of a name.
func lookUp(ctx context.Context, server, name string) (addrs []netip.Addr, code dnsmessage.RCode, err error) {
	head, p, err := question(ctx, server, name+".")
	if err != nil {
		return nil, 0, err
	}
	if err := p.SkipAllQuestions(); err != nil {
		return nil, 0, errNoDNS
	}
	answers, err := p.AllAnswers()
	if err != nil {
		return nil, 0, errNoDNS
	}
	for _, a := range answers {
		if r, ok := a.Body.(*dnsmessage.AResource); ok {
			addrs = append(addrs, netip.AddrFrom4(r.A))
		}
	}
	return addrs, head.RCode, nil
}

var errNoDNS = errors.New("what answers does not speak DNS")

// question sends one question for an address and returns the answer's header, and the
// rest of it.
func question(ctx context.Context, server, name string) (head dnsmessage.Header, p dnsmessage.Parser, err error) {
	q, err := dnsmessage.NewName(name)
	if err != nil {
		return head, p, err
	}
	const id = 1 // of one question on a socket of its own
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: q, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	raw, err := m.Pack()
	if err != nil {
		return head, p, err
	}
	answer, err := exchange(ctx, server, raw)
	if err != nil {
		return head, p, err
	}
	if head, err = p.Start(answer); err != nil || head.ID != id || !head.Response {
		return head, p, errNoDNS
	}
	return head, p, nil
}

func exchange(ctx context.Context, server string, packet []byte) ([]byte, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := conn.Write(packet); err != nil {
		return nil, err
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	if ctx.Err() != nil {
		return nil, errors.New("there is no answer")
	}
	return buf[:n], err
}
