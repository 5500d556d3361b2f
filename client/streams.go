package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"banger/api"
	"banger/internal/jsonhttp"
)

// Stats tells what the VMM of a VM has taken so far.
func (c *Client) Stats(ctx context.Context, ref string) (api.Stats, error) {
	return call[api.Stats](ctx, c, http.MethodGet, vmPath(ref, "/stats"), nil)
}

// WatchStats calls seen with the figures now and at every interval (whole
// seconds) until seen fails, ctx ends, or the VM does: that is a problem.
func (c *Client) WatchStats(ctx context.Context, ref string, every time.Duration, seen func(api.Stats) error) error {
	seconds := max(1, int(math.Round(every.Seconds())))
	return readEvents(ctx, c, vmPath(ref, "/stats?watch=true&interval="+strconv.Itoa(seconds)), seen)
}

// EventQuery says which events are wanted.
type EventQuery struct {
	// Since is the number of the last event seen; 0 = all that are kept. nil =
	// begin with a snapshot of the VMs.
	Since  *int64
	VM     string // only of this VM, until it is deleted
	Follow bool   // wait for more
}

// Events calls seen with events in order until there are no more or seen fails.
// With q.Follow a restart of the daemon is survived for some seconds.
func (c *Client) Events(ctx context.Context, q EventQuery, seen func(api.Event) error) error {
	deadline := time.Now().Add(restartWait)
	last := api.Event{}
	for {
		var own error
		err := readEvents(ctx, c, q.path(), func(e api.Event) error {
			deadline = time.Now().Add(restartWait)
			if last = e; e.Kind != api.EventSnapshot && e.Kind != api.EventMissed { // what follows those is not told yet
				q.Since = &e.Seq
			}
			own = seen(e)
			return own
		})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		over := q.VM != "" && last.State == api.StateDeleted
		p, told := errors.AsType[*api.Problem](err)
		final := told && p.Code != api.CodeEnding && p.Code != api.CodeUnavailable
		if !q.Follow || own != nil || over || final || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(restartPoll):
		}
	}
}

func (q EventQuery) path() string {
	v := url.Values{"follow": {strconv.FormatBool(q.Follow)}}
	if q.Since != nil {
		v.Set("since", strconv.FormatInt(*q.Since, 10))
	}
	if q.VM != "" {
		v.Set("vm", q.VM)
	}
	return "/v1/events?" + v.Encode()
}

// LogQuery says which part of a VM's console is wanted.
type LogQuery struct {
	Since  time.Time // zero = all
	Lines  int       // only the last so many; 0 = all
	Follow bool      // wait for more
	Times  bool      // begin each line with its time
}

// Logs writes a VM's console to w. It is a guest's text: not for a terminal as
// it is.
func (c *Client) Logs(ctx context.Context, ref string, q LogQuery, w io.Writer) error {
	v := url.Values{"follow": {strconv.FormatBool(q.Follow)}, "times": {strconv.FormatBool(q.Times)}}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339))
	}
	if q.Lines > 0 {
		v.Set("lines", strconv.Itoa(q.Lines))
	}
	resp, err := c.open(ctx, vmPath(ref, "/logs?"+v.Encode()), "text/plain")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return err
	}
	if raw := resp.Trailer.Get("Banger-Problem"); raw != "" {
		p := &api.Problem{}
		if err := json.Unmarshal([]byte(raw), p); err != nil {
			return fmt.Errorf("cannot read the console: %s", raw)
		}
		return p
	}
	return nil
}

// leasePause spares a daemon that is away; nothing tells when it is back.
const leasePause = 200 * time.Millisecond

// HoldLease keeps an ephemeral VM until ctx ends: it is deleted some seconds
// after the last who does this is gone, however he ended. A connection that
// breaks is made anew. HoldLease returns early only when the VM is gone or
// takes no lease.
func (c *Client) HoldLease(ctx context.Context, ref string) error {
	for {
		err := c.holdOnce(ctx, ref)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if p, ok := errors.AsType[*api.Problem](err); ok && (p.Code == api.CodeNotFound || p.Code == api.CodeConflict) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(leasePause):
		}
	}
}

func (c *Client) holdOnce(ctx context.Context, ref string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+vmPath(ref, "/lease"), nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c.explain(ctx, jsonhttp.DecodeAnswer(resp, nil))
	}
	_, err = io.Copy(io.Discard, resp.Body) // nothing comes, until it breaks
	return err
}
