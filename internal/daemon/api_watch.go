package daemon

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/vm"
)

// problemTrailer carries the error document of a text stream that failed after
// it had begun.
const problemTrailer = "Banger-Problem"

func (d *Daemon) getHealth(ctx context.Context, in *RefInput) (api.Health, error) {
	return d.vms.Health(ctx, in.Ref)
}

func (d *Daemon) getPorts(ctx context.Context, in *RefInput) ([]api.Port, error) {
	return d.vms.Ports(ctx, in.Ref)
}

func (d *Daemon) getStats(ctx context.Context, in *struct {
	RefInput
	Watch    bool `query:"watch" doc:"tell again and again, as server-sent events, until the VM ends"`
	Interval int  `query:"interval" minimum:"1" maximum:"3600" default:"1" doc:"seconds between two events"`
}) (*huma.StreamResponse, error) {
	if !in.Watch {
		s, err := d.vms.Stats(ctx, in.Ref)
		if err != nil {
			return nil, statusError(err)
		}
		raw, err := json.Marshal(s)
		return &huma.StreamResponse{Body: func(h huma.Context) {
			h.SetHeader("Content-Type", "application/json")
			h.SetStatus(http.StatusOK)
			_, _ = h.BodyWriter().Write(raw) // the caller may have left
		}}, err
	}
	return d.endless(ctx, func(ctx context.Context, s *eventStream) error {
		return d.vms.WatchStats(ctx, in.Ref, time.Duration(in.Interval)*time.Second, func(figures api.Stats) error {
			return s.tell("stats", 0, figures)
		})
	}), nil
}

func (d *Daemon) getEvents(ctx context.Context, in *struct {
	Since  string `query:"since" doc:"number of the last event seen, 0 for all that are kept; without it a snapshot of the VMs comes first"`
	VM     string `query:"vm" doc:"tell of this VM only, until it is deleted"`
	Follow bool   `query:"follow" default:"true" doc:"wait for more"`
}) (*huma.StreamResponse, error) {
	q := vm.EventQuery{Ref: in.VM, Follow: in.Follow}
	if in.Since != "" {
		seq, err := parseSeq(in.Since)
		if err != nil {
			return nil, statusError(err)
		}
		q.Since = &seq
	}
	if in.VM != "" {
		if _, err := d.vms.Get(ctx, in.VM); err != nil {
			return nil, statusError(err)
		}
	}
	return d.endless(ctx, func(ctx context.Context, s *eventStream) error {
		s.open()
		return d.vms.Events(ctx, q, func(e api.Event) error { return s.tell("vm", e.Seq, e) })
	}), nil
}

func parseSeq(s string) (int64, error) {
	var n json.Number
	if err := json.Unmarshal([]byte(s), &n); err == nil {
		if seq, err := n.Int64(); err == nil && seq >= 0 {
			return seq, nil
		}
	}
	return 0, api.BadRequest("cannot tell events since %q: it is not the number of one", s)
}

func (d *Daemon) getLogs(ctx context.Context, in *struct {
	RefInput
	Since  time.Time `query:"since" doc:"leave out what is older (RFC 3339)"`
	Lines  int       `query:"lines" minimum:"1" maximum:"1000000" doc:"only the last so many"`
	Follow bool      `query:"follow" doc:"wait for more"`
	Times  bool      `query:"times" doc:"begin each line with its time"`
}) (*huma.StreamResponse, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return nil, statusError(err)
	}
	q := vm.LogQuery{Since: in.Since, Lines: in.Lines, Follow: in.Follow, Times: in.Times}
	return &huma.StreamResponse{Body: func(h huma.Context) {
		ctx, stop := d.untilEnding(ctx)
		defer stop()
		t := &textStream{h: h}
		if q.Follow {
			t.open()
		}
		t.end(d.vms.Logs(ctx, v.ID, q, t))
	}}, nil
}

// textStream is an answer of text that begins with its first byte.
type textStream struct {
	h      huma.Context
	opened bool
}

func (t *textStream) open() {
	t.opened = true
	t.h.SetHeader("Content-Type", "text/plain; charset=utf-8")
	t.h.SetHeader("X-Content-Type-Options", "nosniff")
	t.h.SetHeader("Trailer", problemTrailer)
	t.h.SetStatus(http.StatusOK)
	t.flush()
}

func (t *textStream) Write(p []byte) (int, error) {
	if !t.opened {
		t.open()
	}
	n, err := t.h.BodyWriter().Write(p)
	t.flush()
	return n, err
}

func (t *textStream) flush() {
	if f, ok := t.h.BodyWriter().(http.Flusher); ok {
		f.Flush()
	}
}

func (t *textStream) end(err error) {
	switch {
	case err == nil && !t.opened:
		t.open()
	case err == nil:
	case !t.opened:
		writeProblem(t.h, err)
	default:
		if raw, err := json.Marshal(streamProblem(err)); err == nil {
			t.h.SetHeader(problemTrailer, string(raw))
		}
	}
}
