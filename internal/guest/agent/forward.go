package agent

import (
	"context"
	"io"
	"net"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"
)

// forwardRequest is the payload of a direct-tcpip channel (RFC 4254, 7.2).
type forwardRequest struct {
	Host       string
	Port       uint32
	Origin     string
	OriginPort uint32
}

// dialTimeout is ample: the port is in the guest itself.
const dialTimeout = 10 * time.Second

// forward connects a channel to a TCP port of the guest itself; the guest is
// no way into other networks.
func (s *sshServer) forward(nc ssh.NewChannel) {
	var req forwardRequest
	if err := ssh.Unmarshal(nc.ExtraData(), &req); err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, "malformed request") // fails with the connection
		return
	}
	if ip := net.ParseIP(req.Host); req.Host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		_ = nc.Reject(ssh.Prohibited, "only ports of the guest's localhost are forwarded")
		return
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(context.Background(), "tcp", net.JoinHostPort(req.Host, strconv.FormatUint(uint64(req.Port), 10)))
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer conn.Close()
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	go ssh.DiscardRequests(requests)
	joinHalves(ch, conn.(*net.TCPConn))
}

// joinHalves copies both ways. Each direction ends by itself, and the other
// side is told so; an error ends it the same way.
func joinHalves(ch ssh.Channel, conn *net.TCPConn) {
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(ch, conn)
		_ = ch.CloseWrite()
	}()
	_, _ = io.Copy(conn, ch)
	_ = conn.CloseWrite()
	<-back
}
