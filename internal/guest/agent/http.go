package agent

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"banger/api"
	"banger/internal/guest"
)

// The control port speaks the HTTP/1.1 with JSON of package jsonhttp, without
// net/http: four routes do not need what it brings, which is TLS, HTTP/2 and
// a third of the program. Every boot unpacks the program into memory and pays
// for each of its pages.

// Limits of what the host may send.
const (
	maxHead     = 16 << 10
	maxBody     = guest.MaxRequest
	headTimeout = 10 * time.Second // from the first byte of a request to its last
	idleTimeout = 2 * time.Minute
)

// route answers one method and path. then, which may be nil, runs when the
// answer has left.
type route struct {
	method, path string
	protocol     string // the request has to ask for an upgrade to it; answer is a takeover then
	handle       func(body []byte) (answer any, err error)
	then         func()
}

// takeover is the answer 101: it owns the connection until it returns. What
// has been read of it already is in r, which reads on from there.
type takeover func(conn net.Conn, r *bufio.Reader)

// pending is an answer that has to be waited for. The connection is of no
// further use.
type pending struct {
	ready  <-chan struct{}
	answer func() any // called when ready is closed
	over   func()     // called when the client has its answer or has gone away
}

// answerTime is how long the answer 101 may wait for what is written next.
const answerTime = time.Second

// upgradedConn sends the answer 101 together with what is written first: each
// packet leaves the guest, which takes longer than many a command. The host
// does not wait for it before it sends.
type upgradedConn struct {
	net.Conn

	mu     sync.Mutex
	late   *time.Timer // guarded by mu; sends the answer alone
	answer []byte      // guarded by mu; nil when sent
}

func newUpgradedConn(conn net.Conn, protocol string) *upgradedConn {
	c := &upgradedConn{Conn: conn, answer: fmt.Appendf(nil, "HTTP/1.1 101 -\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = time.AfterFunc(answerTime, func() { _, _ = c.Write(nil) }) // a dead connection fails the next read
	return c
}

func (c *upgradedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answer == nil {
		return c.Conn.Write(p)
	}
	c.late.Stop()
	head := len(c.answer)
	n, err := c.Conn.Write(append(c.answer, p...))
	c.answer = nil
	return max(n-head, 0), err
}

func (c *upgradedConn) Close() error {
	c.mu.Lock()
	c.late.Stop()
	c.mu.Unlock()
	return c.Conn.Close()
}

func (r route) upgradedTo(protocol string) route {
	r.protocol = protocol
	return r
}

// jsonRoute makes a route of a typed function: unknown fields and trailing
// data are refused, an empty body is an empty request.
func jsonRoute[In, Out any](method, path string, f func(In) (Out, error), then func()) route {
	return route{method: method, path: path, handle: func(body []byte) (any, error) {
		var in In
		if err := decode(body, &in); err != nil {
			return nil, api.BadRequest("cannot read request: %v", err)
		}
		return f(in)
	}, then: then}
}

func decode(body []byte, in any) error {
	if len(body) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(in); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

// serveHTTP accepts connections until the listener fails.
func serveHTTP(l net.Listener, routes []route, log *slog.Logger) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("control port is closed: %w", err)
		}
		go guard(log, func() {
			defer conn.Close()
			serveConn(conn, routes)
		})
	}
}

// serveConn answers requests until the client closes or breaks the rules; a
// broken rule is answered before the connection is closed.
func serveConn(conn net.Conn, routes []route) {
	r := bufio.NewReader(conn)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(idleTimeout)) // a dead connection fails below
		if _, err := r.Peek(1); err != nil {
			return
		}
		_ = conn.SetReadDeadline(time.Now().Add(headTimeout))
		req, err := readRequest(r)
		if err != nil {
			_ = writeAnswer(conn, nil, err, true)
			return
		}
		answer, then, err := dispatch(routes, req)
		if take, ok := answer.(takeover); ok && err == nil {
			upgrade(conn, r, req.upgrade, take)
			return
		}
		if later, ok := answer.(pending); ok && err == nil {
			answerLater(conn, r, later)
			return
		}
		if writeErr := writeAnswer(conn, answer, err, req.last); then != nil && err == nil {
			then()
		} else if writeErr != nil {
			return
		}
		if req.last {
			return
		}
	}
}

// lingerTimeout is for a client to read its answer: bytes in flight are lost
// when the process ends first.
const lingerTimeout = time.Second

// answerLater returns early if the client goes away.
func answerLater(conn net.Conn, r *bufio.Reader, p pending) {
	defer p.over()
	_ = conn.SetReadDeadline(time.Time{}) // a dead connection fails below
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = r.Peek(1) // nothing more may come
	}()
	select {
	case <-gone:
		return
	case <-p.ready:
	}
	_ = writeAnswer(conn, p.answer(), nil, true)
	_ = conn.SetReadDeadline(time.Now().Add(lingerTimeout))
	<-gone
}

func upgrade(conn net.Conn, r *bufio.Reader, protocol string, take takeover) {
	_ = conn.SetReadDeadline(time.Time{}) // a dead connection fails below
	c := newUpgradedConn(conn, protocol)
	defer c.Close()
	take(c, r)
}

func dispatch(routes []route, req httpRequest) (answer any, then func(), err error) {
	err = api.NotFound("no %s in this agent", req.path)
	for _, r := range routes {
		switch {
		case r.path != req.path:
		case r.method != req.method:
			err = api.Problemf(405, api.CodeBadRequest, "%s does not take %s", req.path, req.method)
		case r.protocol != req.upgrade:
			err = api.Problemf(426, api.CodeBadRequest, "%s upgrades to %q, not to %q", req.path, r.protocol, req.upgrade)
		default:
			answer, err := r.handle(req.body)
			return answer, r.then, err
		}
	}
	return nil, nil, err
}

type httpRequest struct {
	method, path string
	body         []byte
	upgrade      string // protocol to go on with
	last         bool   // the client closes after the answer
}

// readRequest reads one request, whose body has to have a length.
func readRequest(r *bufio.Reader) (httpRequest, error) {
	head := headReader{r: r, left: maxHead}
	line, err := head.line()
	if err != nil {
		return httpRequest{}, err
	}
	words := strings.Split(line, " ")
	if len(words) != 3 || words[2] != "HTTP/1.1" || words[0] == "" || !strings.HasPrefix(words[1], "/") {
		return httpRequest{}, api.BadRequest("not an HTTP/1.1 request")
	}
	req := httpRequest{method: words[0], path: words[1]}
	length, err := head.fields(&req)
	if err != nil {
		return httpRequest{}, err
	}
	// What follows a request to upgrade is not HTTP, however it is answered, and
	// must not be taken for another request.
	req.last = req.last || req.upgrade != ""
	req.body = make([]byte, length)
	if _, err := io.ReadFull(r, req.body); err != nil {
		return httpRequest{}, api.BadRequest("cannot read the request's body: %v", err)
	}
	return req, nil
}

// headReader reads the lines of a request's head, which may be left bytes long.
type headReader struct {
	r    *bufio.Reader
	left int
}

func (h *headReader) line() (string, error) {
	var line []byte
	for {
		part, err := h.r.ReadSlice('\n')
		if h.left -= len(part); h.left < 0 {
			return "", api.Problemf(431, api.CodeBadRequest, "the request's head is longer than %d bytes", maxHead)
		}
		line = append(line, part...)
		if err == nil {
			return strings.TrimRight(string(line), "\r\n"), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return "", api.BadRequest("cannot read the request's head: %v", err)
		}
	}
}

// fields reads header fields up to the empty line. Two lengths, or a body
// without one, are refused.
func (h *headReader) fields(req *httpRequest) (length int, err error) {
	seen := false
	for {
		line, err := h.line()
		if err != nil || line == "" {
			return length, err
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return 0, api.BadRequest("malformed header field")
		}
		value = strings.TrimSpace(value)
		switch strings.ToLower(name) {
		case "content-length":
			n, err := strconv.ParseUint(value, 10, 31)
			if err != nil || seen {
				return 0, api.BadRequest("bad content length")
			}
			if n > maxBody {
				return 0, api.Problemf(413, api.CodeBadRequest, "the request is larger than %d bytes", maxBody)
			}
			length, seen = int(n), true
		case "transfer-encoding":
			return 0, api.Problemf(411, api.CodeBadRequest, "a request body needs a content length")
		case "upgrade":
			req.upgrade = value
		case "connection":
			req.last = strings.EqualFold(value, "close")
		}
	}
}

// writeAnswer sends answer, or the problem that err is, in one write.
func writeAnswer(w io.Writer, answer any, err error, last bool) error {
	status := 200
	if err != nil {
		p := asProblem(err)
		status, answer = p.Status, p
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("cannot encode an answer: %w", err)
	}
	out := fmt.Appendf(nil, "HTTP/1.1 %d -\r\nContent-Type: application/json\r\nContent-Length: %d\r\n", status, len(body))
	if last {
		out = append(out, "Connection: close\r\n"...)
	}
	out = append(out, "\r\n"...)
	_, err = w.Write(append(out, body...))
	return err
}

// asProblem keeps the words of the errors around a Problem.
func asProblem(err error) *api.Problem {
	p, ok := errors.AsType[*api.Problem](err)
	if !ok {
		return api.Internal("%v", err)
	}
	q := *p
	q.Detail = err.Error()
	return &q
}
