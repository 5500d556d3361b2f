package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listenVsock opens a listening socket on a vsock port. The descriptor is for
// handing over to the serving process.
func listenVsock(port uint32) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("cannot open a vsock socket: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port})
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("cannot listen on vsock port %d: %w", port, err)
	}
	return fd, nil
}

// vsockListener is a net.Listener over a listening vsock descriptor, which
// net.FileListener does not know.
type vsockListener struct {
	f    *os.File
	raw  syscall.RawConn
	addr vsockAddr
}

func newVsockListener(fd int, port uint32) (*vsockListener, error) {
	f := os.NewFile(uintptr(fd), "vsock")
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("cannot use vsock descriptor %d: %w", fd, err)
	}
	return &vsockListener{f: f, raw: raw, addr: vsockAddr{unix.VMADDR_CID_ANY, port}}, nil
}

// Accept returns connections of the host. Others are closed: where the guest's
// kernel has a local transport, any process in the guest could call, and the
// control port obeys whoever does.
func (l *vsockListener) Accept() (net.Conn, error) {
	for {
		c, err := l.accept()
		if err != nil {
			return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.addr, Err: err}
		}
		if c.remote.cid == unix.VMADDR_CID_HOST {
			return c, nil
		}
		_ = c.Close()
	}
}

func (l *vsockListener) accept() (*vsockConn, error) {
	var fd int
	var from unix.Sockaddr
	var acceptErr error
	err := l.raw.Read(func(s uintptr) bool {
		fd, from, acceptErr = unix.Accept4(int(s), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return !errors.Is(acceptErr, unix.EAGAIN) && !errors.Is(acceptErr, unix.EINTR)
	})
	if err == nil {
		err = acceptErr
	}
	if err != nil {
		return nil, err
	}
	c := &vsockConn{f: os.NewFile(uintptr(fd), "vsock"), local: l.addr}
	if vm, ok := from.(*unix.SockaddrVM); ok {
		c.remote = vsockAddr{vm.CID, vm.Port}
	}
	return c, nil
}

func (l *vsockListener) Close() error   { return l.f.Close() }
func (l *vsockListener) Addr() net.Addr { return l.addr }

// vsockConn is a stream. Every error is a net.Error, as net/http expects.
type vsockConn struct {
	f             *os.File
	local, remote vsockAddr
}

func (c *vsockConn) Read(b []byte) (int, error) {
	n, err := c.f.Read(b)
	return n, c.wrap("read", err)
}

func (c *vsockConn) Write(b []byte) (int, error) {
	n, err := c.f.Write(b)
	return n, c.wrap("write", err)
}

func (c *vsockConn) wrap(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: "vsock", Source: c.local, Addr: c.remote, Err: err}
}

func (c *vsockConn) Close() error                       { return c.f.Close() }
func (c *vsockConn) LocalAddr() net.Addr                { return c.local }
func (c *vsockConn) RemoteAddr() net.Addr               { return c.remote }
func (c *vsockConn) SetDeadline(t time.Time) error      { return c.f.SetDeadline(t) }
func (c *vsockConn) SetReadDeadline(t time.Time) error  { return c.f.SetReadDeadline(t) }
func (c *vsockConn) SetWriteDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }

type vsockAddr struct{ cid, port uint32 }

func (vsockAddr) Network() string  { return "vsock" }
func (a vsockAddr) String() string { return fmt.Sprintf("vm(%d):%d", a.cid, a.port) }
