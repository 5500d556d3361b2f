// Package jsonhttp is the one way banger's programs talk: HTTP/1.1 with JSON
// over a stream socket. It holds the typed call, the answer and error
// envelopes, peer credentials and the server settings shared by bangerd, the
// helper and the guest agent.
package jsonhttp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"banger/api"
)

// Limits of what a peer may make us hold in memory.
const (
	maxAnswer  = 4 << 20
	maxRequest = 1 << 20
	maxHeaders = 16 << 10
)

// requestTime is how long a request's header may take to arrive, and its body.
const requestTime = 10 * time.Second

// OperationHeader carries the id under which one request is found in the logs
// of every program it passes through.
const OperationHeader = "Banger-Operation"

type operationKey struct{}

// WithOperation returns a context whose calls carry the operation id.
func WithOperation(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, operationKey{}, id)
}

// Operation returns the id set by WithOperation, or "".
func Operation(ctx context.Context) string {
	id, _ := ctx.Value(operationKey{}).(string)
	return id
}

// Dialer opens the connection a call travels on.
type Dialer func(ctx context.Context) (net.Conn, error)

// NewHTTPClient returns a client whose every request goes through dial,
// whatever host its URL names.
func NewHTTPClient(dial Dialer) *http.Client {
	return &http.Client{CheckRedirect: noRedirect, Transport: &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        30 * time.Second,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaders,
	}}
}

// noRedirect has a redirection be the answer, which no call of ours takes.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Call sends in (nil for no body) and decodes the answer into out (nil to
// ignore it). A peer that answers with an error document makes Call return
// that *api.Problem; every other error means the peer could not be asked.
func Call(ctx context.Context, c *http.Client, method, url string, in, out any) error {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("cannot encode request: %w", err)
		}
		body = bytes.NewReader(raw) // a known length: Firecracker refuses chunked bodies
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if op := Operation(ctx); op != "" {
		req.Header.Set(OperationHeader, op)
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return DecodeAnswer(resp, out)
}

// DecodeAnswer reads one answer: out on success, *api.Problem otherwise.
func DecodeAnswer(resp *http.Response, out any) error {
	// Behind a 101 that nobody asked for is the connection itself, which ends
	// when the peer likes, whatever the call's context says.
	if resp.StatusCode < http.StatusOK {
		return fmt.Errorf("answer %d is none", resp.StatusCode)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return err
	}
	if len(raw) > maxAnswer {
		return fmt.Errorf("answer is larger than %d bytes", maxAnswer)
	}
	if resp.StatusCode >= 300 {
		return problemOf(resp.StatusCode, raw)
	}
	if out == nil || len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("cannot decode answer: %w", err)
	}
	return nil
}

func problemOf(status int, raw []byte) error {
	p := &api.Problem{}
	if json.Unmarshal(raw, p) != nil || p.Detail == "" {
		p = &api.Problem{Detail: fmt.Sprintf("%s: %.500q", http.StatusText(status), raw), Code: api.CodeInternal}
	}
	p.Status = status
	return p
}

// Handle adapts a typed function to an HTTP handler: strict decoding (unknown
// fields and trailing data are refused), bounded size, one error envelope.
func Handle[In, Out any](f func(context.Context, In) (Out, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := decode(w, r, &in); err != nil {
			WriteError(w, err)
			return
		}
		out, err := f(WithOperation(r.Context(), r.Header.Get(OperationHeader)), in)
		if err != nil {
			WriteError(w, err)
			return
		}
		Write(w, http.StatusOK, out)
	})
}

func decode(w http.ResponseWriter, r *http.Request, in any) error {
	// Not every writer has a connection. Without the deadline half a request
	// would be held as long as its sender likes.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(requestTime))
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	d.DisallowUnknownFields()
	err := d.Decode(in)
	switch {
	case errors.Is(err, io.EOF): // an empty body is an empty request
	case err != nil:
		return api.BadRequest("cannot read request: %v", err)
	default:
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return api.BadRequest("cannot read request: more than one JSON value")
		}
	}
	// From here on the connection is read only to notice that the caller left.
	_ = control.SetReadDeadline(time.Time{})
	return nil
}

// Write answers with v as JSON.
func Write(w http.ResponseWriter, status int, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		status, raw = http.StatusInternalServerError, []byte(`{"status":500,"code":"internal","detail":"cannot encode answer"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(raw))) // complete as soon as it is flushed
	w.WriteHeader(status)
	_, _ = w.Write(raw) // the peer is gone; nobody is left to tell
}

// WriteError answers with the Problem in err's chain, or with a plain 500.
func WriteError(w http.ResponseWriter, err error) {
	p := AsProblem(err)
	Write(w, p.Status, p)
}

// AsProblem finds the Problem in err's chain, keeping the words of the errors
// that wrap it, or makes an internal one of err's text.
func AsProblem(err error) *api.Problem {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		q := *p
		q.Detail = err.Error()
		if q.Status == 0 {
			q.Status = http.StatusInternalServerError
		}
		return &q
	}
	if errors.Is(err, context.Canceled) {
		return api.Problemf(499, api.CodeCancelled, "%v", err)
	}
	return api.Internal("%v", err)
}

// NewServer returns a server with the time and size limits every banger
// program uses. ConnContext stores the peer's credentials, see PeerOf.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: requestTime,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeaders,
		ConnContext:       peerContext,
	}
}
