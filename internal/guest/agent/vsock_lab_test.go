//go:build lab

package agent

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process of the guest must not be taken for the host, also where the
// kernel lets it call the agent's ports.
func TestLocalCallersAreRefused(t *testing.T) {
	if out, err := exec.CommandContext(t.Context(), "modprobe", "vsock_loopback").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const port = 61024
	fd, err := listenVsock(port)
	if err != nil {
		t.Fatal(err)
	}
	l, err := newVsockListener(fd, port)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()

	s, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(s, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: port}); err != nil {
		t.Fatalf("the test itself cannot connect: %v", err)
	}
	if err := unix.SetNonblock(s, true); err != nil {
		t.Fatal(err)
	}
	c := os.NewFile(uintptr(s), "caller")
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !(errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET)) {
		t.Errorf("the caller is not turned away: %d, %v", n, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if <-accepted == nil {
		t.Error("the caller was accepted")
	}
}
