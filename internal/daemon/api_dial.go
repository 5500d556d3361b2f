package daemon

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
)

const (
	upgradeName  = "banger-stream"
	passFDHeader = "Banger-Pass-Fd"
	// hasFDHeader tells in the answer whether a descriptor follows: yes or no.
	hasFDHeader = "Banger-Fd"
)

// dial connects the caller to a vsock port of a guest. A local caller that
// asks for it gets the connected descriptor itself: its bytes then pass no
// other program, and the session outlives bangerd.
func (d *Daemon) dial(w http.ResponseWriter, r *http.Request) {
	port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 32)
	if err != nil || port == 0 {
		writeError(w, api.BadRequest("cannot dial: %q is no vsock port", r.URL.Query().Get("port")))
		return
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), upgradeName) {
		writeError(w, api.Problemf(http.StatusUpgradeRequired, api.CodeBadRequest, "cannot dial: the request lacks `Upgrade: %s`", upgradeName))
		return
	}
	guest, over, err := d.vms.Dial(r.Context(), r.PathValue("ref"), uint32(port))
	if err != nil {
		writeError(w, err)
		return
	}
	defer over()
	defer guest.Close()
	caller, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeError(w, api.Internal("cannot dial: %v", err))
		return
	}
	defer caller.Close()
	if err := caller.SetDeadline(time.Time{}); err != nil { // the server had set one
		return
	}
	local, isUnix := caller.(*net.UnixConn)
	pass := isUnix && r.Header.Get(passFDHeader) == "1"
	answer := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + upgradeName + "\r\n" +
		// A caller may ask for nothing else before it uses the connection.
		api.VersionHeader + ": " + w.Header().Get(api.VersionHeader) + "\r\n" +
		hasFDHeader + ": " + map[bool]string{true: "yes", false: "no"}[pass] + "\r\n\r\n"
	if _, err := io.WriteString(caller, answer); err != nil {
		return
	}
	if pass {
		if err := sendFD(local, guest); err != nil {
			d.log.WarnContext(r.Context(), "cannot pass a descriptor", "error", err)
			return
		}
		_ = guest.Close() // else its end would not be seen
		// The caller keeps this connection as long as the other one.
		_, _ = io.Copy(io.Discard, caller)
	} else {
		join(caller, buffered, guest)
	}
	d.vms.Prepare(context.WithoutCancel(r.Context()), r.PathValue("ref"), uint32(port))
}

// sendFD sends one byte that carries the descriptor of c.
func sendFD(to, c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Control(func(fd uintptr) {
		_, _, sendErr = to.WriteMsgUnix([]byte{'F'}, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, sendErr)
}

// join copies both ways until either side ends. The protocols that travel here
// have an end of their own, since vsock through Firecracker loses data after a
// half-close: a side that closes has gone.
func join(caller net.Conn, buffered *bufio.ReadWriter, guest *net.UnixConn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(guest, buffered.Reader) // what the server had read already comes first
		_ = guest.Close()
	})
	wg.Go(func() {
		_, _ = io.Copy(caller, guest)
		_ = caller.Close()
	})
	wg.Wait()
}
