package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/jsonhttp"
	"banger/internal/vm"
)

// eventStream is an answer of server-sent events. It begins with the first
// event, so that a failure before it is an ordinary one. A later failure is
// the event "problem", with which the stream ends.
type eventStream struct {
	h      huma.Context
	opened bool
}

// stream answers with what f tells until f returns.
func stream(ctx context.Context, f func(context.Context, *eventStream) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(h huma.Context) {
		s := &eventStream{h: h}
		if err := f(ctx, s); err != nil {
			s.fail(ctx, err)
		}
	}}
}

// endless is stream for what has no end of its own: it also ends with the
// daemon, and says so.
func (d *Daemon) endless(ctx context.Context, f func(context.Context, *eventStream) error) *huma.StreamResponse {
	return stream(ctx, func(ctx context.Context, s *eventStream) error {
		ctx, stop := d.untilEnding(ctx)
		defer stop()
		err := f(ctx, s)
		if err != nil && d.ending.Err() != nil {
			return vm.ErrEnding
		}
		return err
	})
}

// open sends the head of the answer, for a stream that may have nothing to
// tell for long.
func (s *eventStream) open() {
	if s.opened {
		return
	}
	s.opened = true
	s.h.SetHeader("Content-Type", "text/event-stream")
	s.h.SetHeader("Cache-Control", "no-store")
	s.h.SetStatus(http.StatusOK)
	s.flush()
}

// tell sends one event; id 0 is none.
func (s *eventStream) tell(event string, id int64, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s.open()
	text := "event: " + event + "\n"
	if id != 0 {
		text += fmt.Sprintf("id: %d\n", id)
	}
	if _, err := fmt.Fprintf(s.h.BodyWriter(), "%sdata: %s\n\n", text, raw); err != nil {
		return err
	}
	s.flush()
	return nil
}

func (s *eventStream) flush() {
	if f, ok := s.h.BodyWriter().(http.Flusher); ok {
		f.Flush()
	}
}

// fail tells the error, unless it is that nobody listens any more.
func (s *eventStream) fail(ctx context.Context, err error) {
	if ctx.Err() != nil && !errors.Is(err, vm.ErrEnding) {
		return
	}
	if !s.opened {
		writeProblem(s.h, err)
		return
	}
	_ = s.tell("problem", 0, streamProblem(err)) // he may have left by now
}

func streamProblem(err error) *api.Problem {
	if errors.Is(err, vm.ErrEnding) {
		return api.Problemf(http.StatusServiceUnavailable, api.CodeEnding, "bangerd is ending")
	}
	return jsonhttp.AsProblem(err)
}

// writeProblem answers with an error document what has not begun to answer.
func writeProblem(h huma.Context, err error) {
	p := streamProblem(err)
	raw, err := json.Marshal(p)
	if err != nil {
		raw = []byte(`{"status":500,"code":"internal","detail":"cannot encode answer"}`)
	}
	h.SetHeader("Content-Type", "application/json")
	h.SetStatus(p.Status)
	_, _ = h.BodyWriter().Write(raw) // as above
}

// untilEnding is for streams that have no end of their own: it ends with the
// caller's context and with the daemon.
func (d *Daemon) untilEnding(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(d.ending, func() { cancel(vm.ErrEnding) })
	return ctx, func() { stop(); cancel(nil) }
}
