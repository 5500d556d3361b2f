package helper

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A socket whose queue is full, as while somebody else floods it, is asked again.
func TestDialWaitsForRoomInTheQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	var waiting []net.Conn
	defer func() {
		for _, c := range waiting {
			c.Close()
		}
	}()
	for full := false; !full; {
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "unix", path)
		if full = errors.Is(err, unix.EAGAIN); !full {
			if err != nil {
				t.Fatal(err)
			}
			waiting = append(waiting, c)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := dial(short, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a full queue: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() {
		if nfd, _, err := unix.Accept(fd); err == nil {
			_ = unix.Close(nfd)
		}
	})
	c, err := dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
