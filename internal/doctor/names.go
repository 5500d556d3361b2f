package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
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
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp4", server)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	q, err := dnsmessage.NewName(name)
	if err != nil {
		return err
	}
	const id = 1 // of one question on a socket of its own
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id},
		Questions: []dnsmessage.Question{{Name: q, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	raw, err := m.Pack()
	if err != nil {
		return err
	}
	if _, err := conn.Write(raw); err != nil {
		return err
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	if ctx.Err() != nil {
		return errors.New("there is no answer")
	}
	if err != nil {
		return err
	}
	var p dnsmessage.Parser
	head, err := p.Start(buf[:n])
	if err != nil || head.ID != id || !head.Response {
		return errors.New("what answers does not speak DNS")
	}
	if head.RCode != dnsmessage.RCodeNameError || !head.Authoritative {
		return fmt.Errorf("the answer is %s, from somebody who is not in charge of the zone", head.RCode)
	}
	return nil
}
