package guest

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode"
)

// agentSaying accepts connections, reads a request and answers with bytes.
func agentSaying(t *testing.T, say func(c net.Conn)) func(context.Context) (net.Conn, error) {
	t.Helper()
	path := t.TempDir() + "/s"
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					say(c)
				}
			}()
		}
	}()
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) }
}

// endlessly writes a text until nobody reads it any more.
func endlessly(text string) func(net.Conn) {
	return func(c net.Conn) {
		for {
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
		}
	}
}

func once(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) }
}

func after(text string, then func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) { once(text)(c); then(c) }
}

// drips writes a byte now and then.
func drips(c net.Conn) {
	for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
		if _, err := io.WriteString(c, " "); err != nil {
			return
		}
	}
}

const okHeader = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

// TestAHostileAgent checks that no answer blocks for longer than it is waited
// for, makes us hold much, or puts a control character before a person.
func TestAHostileAgent(t *testing.T) {
	for name, say := range map[string]func(net.Conn){
		"closes":               func(net.Conn) {},
		"nothing":              func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"no HTTP":              once("\x00\x1b[2J\xff\r\n\r\n"),
		"half a header":        once("HTTP/1.1 200 O"),
		"half a body":          once(okHeader + "Content-Length: 100\r\n\r\n{"),
		"a header's name":      once("HTTP/1.1 200 OK\r\n\x1b[2J\u202eX\r\n\r\n"),
		"a header's value":     once("HTTP/1.1 200 OK\r\nX: \x1b[2J\x00\r\n\r\n{\"phase\":1}"),
		"a status":             once("HTTP/1.1 999 \x1b[2J\r\nContent-Length: 5\r\n\r\n\x1b[2Jx"),
		"a version":            once("HTTP/9.9\x1b[2J 200 OK\r\n\r\n"),
		"a length":             once(okHeader + "Content-Length: \x1b[2J\r\n\r\n"),
		"two lengths":          once(okHeader + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}"),
		"a coding":             once(okHeader + "Transfer-Encoding: \x1b[2J\r\n\r\n"),
		"a chunk":              once(okHeader + "Transfer-Encoding: chunked\r\n\r\n\x1b[2J\r\n"),
		"a trailer":            after(okHeader+"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", endlessly("X: y\r\n")),
		"JSON":                 once(okHeader + "Content-Length: 6\r\n\r\n\x1b[2Jxx"),
		"deep JSON":            once(okHeader + "Content-Length: 100000\r\n\r\n" + strings.Repeat("[", 100_000)),
		"another type":         once(okHeader + "Content-Length: 15\r\n\r\n{\"phase\":[1,2]}"),
		"an endless line":      endlessly("HTTP/1.1 200 OK"),
		"endless headers":      after("HTTP/1.1 200 OK\r\n", endlessly("X: yyyyyyyyyyyyyyyy\r\n")),
		"an endless header":    after("HTTP/1.1 200 OK\r\nX: ", endlessly("yyyyyyyyyyyyyyyy")),
		"endless remarks":      endlessly("HTTP/1.1 100 Continue\r\n\r\n"),
		"endless redirections": endlessly("HTTP/1.1 307 x\r\nLocation: /v1/health\r\nContent-Length: 0\r\n\r\n"),
		"an endless body":      after(okHeader+"\r\n", endlessly(strings.Repeat(" ", 1<<16))),
		"endless chunks":       after(okHeader+"Transfer-Encoding: chunked\r\n\r\n", endlessly("1;x=yyyyyyyyyyyyyyyyy\r\n \r\n")),
		"a slow header":        after("HTTP/1.1 200 OK\r\nX:", drips),
		"a slow body":          after(okHeader+"\r\n", drips),
		"an upgrade":           after("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }),
		"endless upgrades":     endlessly("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			dial := agentSaying(t, say)
			var before, now runtime.MemStats
			runtime.ReadMemStats(&before)
			for what, ask := range map[string]func(ctx context.Context) error{
				"health": func(ctx context.Context) error {
					c := NewClient(func(ctx context.Context, _ uint32) (net.Conn, error) { return dial(ctx) })
					defer c.Close()
					_, err := c.Health(ctx)
					return err
				},
				"exec": func(ctx context.Context) error {
					conn, err := dial(ctx)
					if err != nil {
						return err
					}
					defer conn.Close()
					defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // the only end that a session has
					host, err := StartExec(ctx, conn, Exec{Argv: []string{"true"}})
					if err != nil {
						return err
					}
					_, err = host.Wait()
					return err
				},
			} {
				begun := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				err := ask(ctx)
				cancel()
				if err == nil {
					t.Fatalf("%s was believed", what)
				}
				if d := time.Since(begun); d > 5*time.Second {
					t.Errorf("%s took %s", what, d)
				}
				if text := err.Error(); len(text) > 3000 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("%s says %.300q", what, text)
				}
			}
			runtime.ReadMemStats(&now)
			if grown := int64(now.TotalAlloc - before.TotalAlloc); grown > 64<<20 {
				t.Errorf("it took %d MiB", grown>>20)
			}
		})
	}
}
