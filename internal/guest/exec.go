package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"banger/api"
	"banger/internal/guest/stream"
	"banger/internal/jsonhttp"
)

// answerTime bounds the wait for an agent that was just connected to.
const answerTime = 30 * time.Second

// maxUpgrade bounds the answer, a problem included.
const maxUpgrade = 64 << 10

// MaxInput is how much of a command's input may be known when it starts.
const MaxInput = 64 << 10

// Input is what is known of a command's stdin before it starts. It travels with
// the request: each packet costs a guest much.
type Input struct {
	Data  []byte
	Ended bool // nothing follows Data
}

// StartExec starts a command over conn, a new connection to ControlPort. The
// caller closes conn, after which the stream is over; while the command runs,
// that hangs up on it. Input may be sent at once. Whether the agent has heard,
// and what it thinks of it, is told by the stream's Wait; ctx ends the wait for
// that and nothing later.
func StartExec(ctx context.Context, conn net.Conn, e Exec) (*stream.Host, error) {
	return StartExecWith(ctx, conn, e, Input{})
}

// StartExecWith is StartExec with known input.
func StartExecWith(ctx context.Context, conn net.Conn, e Exec, in Input) (*stream.Host, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the command: %w", err)
	}
	if len(body) > MaxRequest {
		return nil, fmt.Errorf("cannot start the command: its %d bytes are more than %d", len(body), MaxRequest)
	}
	if len(in.Data) > MaxInput { // the stream would wait for an answer to what was not sent
		return nil, fmt.Errorf("cannot start the command: %d bytes of input are more than %d", len(in.Data), MaxInput)
	}
	if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return nil, fmt.Errorf("cannot bound the start of the command: %w", err)
	}
	stop := interruptOn(ctx, conn)
	answer := &answerReader{open: func() (io.Reader, error) {
		r, err := readAnswer(conn)
		if !stop() || ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err == nil {
			err = conn.SetDeadline(time.Time{})
		}
		if err != nil {
			return nil, fmt.Errorf("cannot start the command: %w", err)
		}
		return r, nil
	}}
	w := &corkedWriter{w: conn, held: fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", stream.Path, stream.Protocol, len(body), body)}
	host := stream.NewHost(answer, w)
	_, err = host.Stdin.Write(in.Data)
	if err == nil && in.Ended {
		err = host.Stdin.Close()
	}
	if err = errors.Join(err, w.uncork()); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("cannot start the command: %w", err)
	}
	return host, nil
}

// corkedWriter holds back what is written until it is uncorked.
type corkedWriter struct {
	w io.Writer

	mu   sync.Mutex
	held []byte // guarded by mu; nil when uncorked
}

func (c *corkedWriter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		return c.w.Write(p)
	}
	c.held = append(c.held, p...)
	return len(p), nil
}

func (c *corkedWriter) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.w.Write(c.held)
	c.held = nil
	return err
}

// answerReader reads what follows the agent's answer, which has to be 101; what
// else it is is the error of the first Read.
type answerReader struct {
	open func() (io.Reader, error)
	r    io.Reader
}

func (a *answerReader) Read(p []byte) (n int, err error) {
	if a.r == nil {
		if a.r, err = a.open(); err != nil {
			return 0, err
		}
	}
	return a.r.Read(p)
}

func readAnswer(conn io.Reader) (io.Reader, error) {
	r := bufio.NewReader(io.LimitReader(conn, maxUpgrade))
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, cleanError(err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		early, err := r.Peek(r.Buffered())
		return io.MultiReader(bytes.NewReader(early), conn), err
	}
	defer resp.Body.Close()
	err = cleanError(jsonhttp.DecodeAnswer(resp, nil))
	switch p, ok := errors.AsType[*api.Problem](err); {
	case ok && p.Status == http.StatusNotFound:
		return nil, p.WithHint("the VM was started by an older banger; stop and start it")
	case err != nil:
		return nil, err
	}
	return nil, api.Internal("the agent answers %s", printable(resp.Status))
}
