package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/jsonhttp"
	"banger/internal/paths"
)

// A daemon that is starting is waited for: systemd's socket queues our
// connection, so these only matter without it, between a daemon's bind and
// its listen, or while its socket is being made anew. Nothing announces that
// moment to a client, hence the poll.
const (
	startingWait = 3 * time.Second
	startingPoll = 50 * time.Millisecond
)

// unixDialer dials socket, waits a moment for a daemon that is starting, and
// turns what stays wrong into a sentence and a next step.
func unixDialer(socket string) jsonhttp.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		deadline := time.Now().Add(startingWait)
		for {
			conn, err := d.DialContext(ctx, "unix", socket)
			if err == nil {
				return conn, nil
			}
			if !starting(socket, err) || time.Now().After(deadline) {
				return nil, dialProblem(socket, err)
			}
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(startingPoll):
			}
		}
	}
}

// starting reports whether a moment's patience may help. Without the socket's
// directory banger was never started here.
func starting(socket string, err error) bool {
	if errors.Is(err, unix.ECONNREFUSED) {
		return true
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, dirErr := os.Stat(filepath.Dir(socket))
	return dirErr == nil && installed(socket)
}

// installed reports whether a daemon is expected at socket: at the usual place
// only after an install, elsewhere because somebody said so.
func installed(socket string) bool {
	if socket != paths.DaemonSocket {
		return true
	}
	_, err := os.Stat(paths.InstallFile)
	return err == nil
}

func dialProblem(socket string, err error) error {
	unavailable := func(format string, args ...any) *api.Problem {
		return api.Problemf(503, api.CodeUnavailable, "cannot reach bangerd: "+format, args...)
	}
	restart := "start it: sudo systemctl start bangerd.socket; see why it ended: journalctl -u bangerd"
	switch {
	case errors.Is(err, fs.ErrNotExist) && !installed(socket):
		return unavailable("banger is not installed on this host (no %s)", socket).
			WithHint("install it here: sudo banger system install --owner $USER; or let a virtual machine be the host: banger machine init")
	case errors.Is(err, fs.ErrNotExist):
		return unavailable("there is no socket %s", socket).WithHint("%s", restart)
	case errors.Is(err, unix.ECONNREFUSED):
		return unavailable("nothing listens on %s", socket).WithHint("%s", restart)
	case errors.Is(err, fs.ErrPermission):
		return api.Problemf(403, api.CodeForbidden, "cannot reach bangerd: %s belongs to somebody else", socket).
			WithHint("banger serves the owner named in %s, and root; another owner: sudo banger system install --owner $USER", paths.InstallFile)
	}
	return fmt.Errorf("cannot reach bangerd: %w", err)
}
