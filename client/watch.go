package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"banger/api"
	"banger/internal/jsonhttp"
)

const (
	// maxEvent bounds one event of an operation's stream.
	maxEvent = 1 << 20
	// restartWait is how long a daemon that went away in the middle of an
	// operation is waited for; restartPoll is the pace of asking, since a
	// daemon that is away cannot say when it is back.
	restartWait = 8 * time.Second
	restartPoll = 200 * time.Millisecond
)

// Watch follows an operation until it ends and returns it as it ended, calling
// seen (may be nil) with each state on the way. An operation that failed is no
// error of Watch: look at its Status and Error. A restart of the daemon is
// survived for some seconds; if the daemon then no longer knows the operation,
// Watch fails with a problem of code not_found.
func (c *Client) Watch(ctx context.Context, id string, seen func(api.Operation)) (api.Operation, error) {
	deadline := time.Now().Add(restartWait)
	known := false
	for {
		op, progress, err := c.watchOnce(ctx, id, seen)
		if err == nil && Ended(op) {
			return op, nil
		}
		if ctx.Err() != nil {
			return op, context.Cause(ctx)
		}
		if progress {
			known = true
			deadline = time.Now().Add(restartWait)
		}
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Code != api.CodeUnavailable {
			if known && p.Code == api.CodeNotFound {
				err = api.NotFound("bangerd ended in the middle of it").
					WithHint("it runs again, but cannot tell how far it was: look at what it was about, e.g. with `banger vm list`, and repeat it")
			}
			return op, err
		}
		if time.Now().After(deadline) {
			if err == nil {
				err = errors.New("the stream ends before the operation does")
			}
			return op, fmt.Errorf("cannot follow operation %s: %w", id, err)
		}
		select {
		case <-ctx.Done():
			return op, context.Cause(ctx)
		case <-time.After(restartPoll):
		}
	}
}

// Ended reports whether an operation will not change any more.
func Ended(op api.Operation) bool {
	switch op.Status {
	case api.OperationSucceeded, api.OperationFailed, api.OperationCancelled:
		return true
	}
	return false
}

// watchOnce reads one stream to its end. progress: at least one event came.
func (c *Client) watchOnce(ctx context.Context, id string, seen func(api.Operation)) (op api.Operation, progress bool, err error) {
	err = readEvents(ctx, c, operationPath(id, "/events"), func(next api.Operation) error {
		op, progress = next, true
		if seen != nil {
			seen(op)
		}
		if Ended(op) {
			return errEnough
		}
		return nil
	})
	return op, progress, err
}

// errEnough ends the reading of events without an error.
var errEnough = errors.New("enough")

// readEvents calls tell with each server-sent event at path until the stream
// ends or tell fails. The event "problem" is the error with which it ended.
func readEvents[T any](ctx context.Context, c *Client, path string, tell func(T) error) error {
	resp, err := c.open(ctx, path, "text/event-stream")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 16<<10), maxEvent)
	var data []byte
	kind := ""
	for lines.Scan() {
		line := lines.Bytes()
		if rest, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			data = append(append(data, bytes.TrimPrefix(rest, []byte(" "))...), '\n')
			continue
		}
		if rest, ok := bytes.CutPrefix(line, []byte("event:")); ok {
			kind = string(bytes.TrimSpace(rest))
			continue
		}
		if len(line) > 0 || len(data) == 0 { // id:, comments; keep-alive
			continue
		}
		if err := tellEvent(kind, data, tell); errors.Is(err, errEnough) {
			return nil
		} else if err != nil {
			return err
		}
		kind, data = "", data[:0]
	}
	return lines.Err()
}

func tellEvent[T any](kind string, data []byte, tell func(T) error) error {
	if kind == "problem" {
		p := &api.Problem{}
		if err := json.Unmarshal(data, p); err != nil {
			return fmt.Errorf("cannot read an event: %w", err)
		}
		return p
	}
	var next T
	if err := json.Unmarshal(data, &next); err != nil {
		return fmt.Errorf("cannot read an event: %w", err)
	}
	return tell(next)
}

// open begins to read an answer of any length.
func (c *Client) open(ctx context.Context, path, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		err := jsonhttp.DecodeAnswer(resp, nil)
		if err == nil {
			err = api.Internal("bangerd answered %s", resp.Status)
		}
		return nil, c.explain(ctx, err)
	}
	return resp, nil
}
