//go:build e2e && hostile

package hostile

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/paths"
)

const (
	floodConns  = 10_000
	daemonConns = 5_000 // more than bangerd has for a user
	slowConns   = 200
	// cutTime is within what a request that does not arrive is cut: the limits
	// are 10 s.
	cutTime = 40 * time.Second
)

// plainStatus sends a text and returns the answer's status, or 0.
func plainStatus(t *testing.T, socket, text string) int {
	t.Helper()
	c, err := dialUnix(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(cutTime)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, text) // it may be refused in the middle
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// flood opens ten thousand connections and holds them.
func (a *attacker) flood(t *testing.T) {
	for socket, n := range floodTargets {
		begun := time.Now()
		var opened, refused atomic.Int64
		var mu sync.Mutex
		var held []net.Conn
		var tasks sync.WaitGroup
		for range 20 {
			tasks.Go(func() {
				for range n / 20 {
					c, err := dialUnix(t.Context(), socket)
					if err != nil {
						refused.Add(1)
						continue
					}
					opened.Add(1)
					mu.Lock()
					held = append(held, c)
					mu.Unlock()
				}
			})
		}
		tasks.Wait()
		open := n
		for end := time.Now().Add(cutTime); open > maxOpen[socket] && time.Now().Before(end); {
			open = stillOpen(held)
		}
		t.Logf("%s: %d connections made, %d refused, %d still open after %s", socket, opened.Load(), refused.Load(), open, time.Since(begun).Round(time.Millisecond))
		if int(opened.Load()) != n || open > maxOpen[socket] {
			t.Errorf("%s: %d of %d connections were made, %d are open", socket, opened.Load(), n, open)
		}
		for _, c := range held {
			_ = c.Close()
		}
	}
	a.served(t)
}

// stillOpen counts the connections that the other side has not closed.
func stillOpen(held []net.Conn) (n int) {
	for _, c := range held {
		raw, err := c.(*net.UnixConn).SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) {
			if _, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT); errors.Is(err, unix.EAGAIN) {
				n++
			}
		})
	}
	return n
}

// served waits until the helper answers the owner again.
func (a *attacker) served(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cutTime)
	defer cancel()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://helper/v1/vm.kill", strings.NewReader(`{"id":"`+ownerUnknown+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := a.client.Do(r)
		if err == nil {
			_ = resp.Body.Close()
			return
		}
		if ctx.Err() != nil {
			t.Errorf("the helper does not serve the owner again: %v", err)
			return
		}
	}
}

// slow sends half requests, and requests a byte at a time, until they are cut.
func (a *attacker) slow(t *testing.T) {
	var tasks sync.WaitGroup
	var cut, late atomic.Int64
	for socket, path := range slowTargets {
		header := "POST " + path + " HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n"
		texts := []string{header[:20], header + "{", header + `{"name":"` + strings.Repeat("a", 100_000)}
		for i := range slowConns {
			tasks.Go(func() {
				c, err := dialUnix(t.Context(), socket)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				if drip(c, texts[i%len(texts)]) {
					cut.Add(1)
				} else {
					late.Add(1)
				}
			})
		}
	}
	tasks.Wait()
	t.Logf("%d slow requests cut, %d not within %s", cut.Load(), late.Load(), cutTime)
	if late.Load() != 0 {
		t.Errorf("%d slow requests were not cut", late.Load())
	}
	a.served(t)
}

// drip sends a text, then byte after byte, and reports whether the other side
// ended it.
func drip(c net.Conn, text string) bool {
	end := time.Now().Add(cutTime)
	_ = c.SetDeadline(end)
	if _, err := io.WriteString(c, text); err != nil {
		return !os.IsTimeout(err)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if _, err := c.Write([]byte("a")); err != nil {
			return !os.IsTimeout(err)
		}
		if time.Now().After(end) {
			return false
		}
	}
	return false
}

var (
	floodTargets = map[string]int{paths.HelperSocket: floodConns, paths.DaemonSocket: daemonConns}
	slowTargets  = map[string]string{paths.HelperSocket: "/v1/vm.kill", paths.DaemonSocket: "/v1/vms"}
)

// maxOpen is how many connections a user may have, and a few that bangerd uses.
var maxOpen = map[string]int{paths.HelperSocket: 256, paths.DaemonSocket: 4096}
