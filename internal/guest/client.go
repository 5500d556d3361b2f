package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"banger/api"
	"banger/internal/jsonhttp"
)

// Client asks one guest's agent. It is safe for concurrent use.
type Client struct {
	http *http.Client
}

// NewClient returns a client whose connections come from dial, which has to
// return a stream to the given vsock port of the guest.
func NewClient(dial func(ctx context.Context, port uint32) (net.Conn, error)) *Client {
	return &Client{http: jsonhttp.NewHTTPClient(func(ctx context.Context) (net.Conn, error) {
		return dial(ctx, ControlPort)
	})}
}

// Close drops idle connections. The client stays usable.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Health tells how far the guest is.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var h Health
	err := c.call(ctx, http.MethodGet, "/v1/health", nil, &h)
	return h.clean(), err
}

// SetIdentity makes the guest this VM and returns when sessions work. It may
// be repeated after a failure that left the guest in PhaseWaiting; an agent
// that has an identity answers with a conflict.
func (c *Client) SetIdentity(ctx context.Context, doc Identity) (Health, error) {
	var h Health
	err := c.call(ctx, http.MethodPut, "/v1/identity", &doc, &h)
	return h.clean(), err
}

// Shutdown asks the guest to end. It returns when the agent has heard, not
// when the guest is down: that is when its VMM ends.
func (c *Client) Shutdown(ctx context.Context, s Shutdown) (Ending, error) {
	var e Ending
	err := c.call(ctx, http.MethodPost, "/v1/shutdown", &s, &e)
	return e, err
}

// End waits for the image's init to end and returns what the guest does next.
// It does not return before, unless ctx ends or the guest can be asked no more.
func (c *Client) End(ctx context.Context) (Intent, error) {
	var i Intent
	if err := c.call(ctx, http.MethodGet, "/v1/end", nil, &i); err != nil {
		return Intent{}, err
	}
	if i.Action != ActionReboot && i.Action != ActionPowerOff {
		return Intent{}, fmt.Errorf("guest ends in an unknown way: %.20q", i.Action)
	}
	return i, nil
}

// Grow enlarges a mounted filesystem to its device.
func (c *Client) Grow(ctx context.Context, path string) error {
	return c.call(ctx, http.MethodPost, "/v1/grow", &Grow{Path: path}, nil)
}

// Ports lists the sockets in the guest on which something listens.
func (c *Client) Ports(ctx context.Context) ([]Port, error) {
	var answer []Port
	if err := c.call(ctx, http.MethodGet, "/v1/ports", nil, &answer); err != nil {
		return nil, err
	}
	ports := make([]Port, 0, min(len(answer), MaxPorts))
	for _, p := range answer[:min(len(answer), MaxPorts)] {
		addr, err := netip.ParseAddr(p.Address)
		if err != nil || addr.Zone() != "" || p.Port < 1 || p.Port > 65535 || (p.Protocol != "tcp" && p.Protocol != "udp") {
			return nil, fmt.Errorf("guest tells of a port that is none: %.100q", fmt.Sprint(p))
		}
		ports = append(ports, Port{Protocol: p.Protocol, Address: addr.String(), Port: p.Port, Process: printable(p.Process)})
	}
	return ports, nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	return cleanError(jsonhttp.Call(ctx, c.http, method, "http://agent"+path, in, out))
}

// cleanError makes an error fit for a person's terminal. Also one that is not
// the agent's own: where an answer is no HTTP, net/http quotes it, not always
// with its control characters escaped.
func cleanError(err error) error {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return &api.Problem{
			Status: p.Status,
			Title:  printable(p.Title),
			Detail: printable(p.Detail),
			Code:   printable(p.Code),
			Hint:   printable(p.Hint),
		}
	}
	if err == nil {
		return nil
	}
	if text := printable(err.Error()); text != err.Error() {
		return plainError{text, err}
	}
	return err
}

// plainError is an error with another text.
type plainError struct {
	text string
	error
}

func (e plainError) Error() string { return e.text }
func (e plainError) Unwrap() error { return e.error }

// clean makes an answer fit for a person's terminal: the agent runs beside
// whatever the guest's users run.
func (h Health) clean() Health {
	return Health{
		Phase:   Phase(printable(string(h.Phase))),
		Version: printable(h.Version),
		Kernel:  printable(h.Kernel),
		BootID:  printable(h.BootID),
		Init:    printable(h.Init),

		Sessions: max(h.Sessions, 0),
	}
}

// printable drops what could move a terminal's cursor or hide text, and bounds
// the length.
func printable(s string) string {
	const most = 1000
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// ErrRefused means that Firecracker closed the connection instead of
// connecting it: nothing in the guest listens on that port (yet). The caller
// may dial again.
var ErrRefused = errors.New("guest refused the connection")

// maxGreeting is longer than any "OK <port>\n" of Firecracker.
const maxGreeting = 32

// Connect asks Firecracker, at the other end of conn, for the guest's vsock
// port. On success conn is a plain stream to the guest. On failure, which
// includes the end of ctx, conn is of no more use; the caller closes it.
func Connect(ctx context.Context, conn net.Conn, port uint32) error {
	stop := interruptOn(ctx, conn)
	err := connect(conn, port)
	if !stop() || ctx.Err() != nil {
		return fmt.Errorf("cannot connect to guest port %d: %w", port, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("cannot connect to guest port %d: %w", port, err)
	}
	return nil
}

func connect(conn net.Conn, port uint32) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return refusal(err)
	}
	line, err := readLine(conn)
	if err != nil {
		return refusal(err)
	}
	if !isGreeting(line) {
		return fmt.Errorf("unexpected answer %q from Firecracker", line)
	}
	return nil
}

// interruptOn makes pending reads and writes on conn fail when ctx ends. stop
// undoes it and reports whether it came in time.
func interruptOn(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Unix(1, 0)) // a closed connection is interrupted already
	})
}

// readLine reads up to and including a newline, one byte at a time: bytes
// behind it belong to whoever uses the connection next.
func readLine(r io.Reader) (string, error) {
	line := make([]byte, 0, maxGreeting)
	b := make([]byte, 1)
	for len(line) < maxGreeting {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
	return "", fmt.Errorf("answer of Firecracker is longer than %d bytes: %q", maxGreeting, line)
}

func isGreeting(line string) bool {
	n, ok := strings.CutPrefix(line, "OK ")
	if !ok {
		return false
	}
	_, err := strconv.ParseUint(n, 10, 32)
	return err == nil
}

// refusal turns every way in which a closed connection shows into ErrRefused.
func refusal(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
		return ErrRefused
	}
	return err
}
