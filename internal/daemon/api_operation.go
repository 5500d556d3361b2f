package daemon

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"banger/api"
	"banger/internal/jsonhttp"
	"banger/internal/vm"
)

// eventPause bounds how often a watcher is told of progress in bytes.
const eventPause = 100 * time.Millisecond

func (d *Daemon) listOperations(context.Context, *struct{}) ([]api.Operation, error) {
	return d.ops.list(), nil
}

func (d *Daemon) getOperation(_ context.Context, in *idInput) (api.Operation, error) {
	op, err := d.ops.get(in.ID)
	if err != nil {
		return api.Operation{}, err
	}
	s, _ := op.snapshot()
	return s, nil
}

func (d *Daemon) cancelOperation(_ context.Context, in *idInput) (none, error) {
	op, err := d.ops.get(in.ID)
	if err == nil {
		op.cancel(vm.ErrCancelled)
	}
	return none{}, err
}

func (d *Daemon) watchOperation(ctx context.Context, in *idInput) (*huma.StreamResponse, error) {
	op, err := d.ops.get(in.ID)
	if err != nil {
		return nil, statusError(err)
	}
	return &huma.StreamResponse{Body: func(h huma.Context) {
		h.SetHeader("Content-Type", "text/event-stream")
		h.SetHeader("Cache-Control", "no-store")
		streamEvents(ctx, h.BodyWriter(), op)
	}}, nil
}

// streamEvents writes the operation at each change until it is finished or the
// watcher has left.
func streamEvents(ctx context.Context, w io.Writer, op *operation) {
	var last api.Operation
	for {
		s, changed := op.snapshot()
		raw, err := json.Marshal(s)
		if err != nil {
			return
		}
		if _, err := w.Write([]byte("data: " + string(raw) + "\n\n")); err != nil {
			return
		}
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		if s.Status != api.OperationRunning {
			return
		}
		if len(s.Stages) == len(last.Stages) && len(s.Stages) > 0 { // only bytes moved
			select {
			case <-time.After(eventPause):
			case <-ctx.Done():
				return
			}
		}
		last = s
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// putInput lends the body of the request, or the file that the caller passes, to
// the import that waits for it and answers when the import has read what it
// wanted.
func (d *Daemon) putInput(w http.ResponseWriter, r *http.Request) {
	op, err := d.ops.get(r.PathValue("id"))
	if err == nil && (op.input == nil || op.finished()) {
		err = takesNoData(r)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	if r.Header.Get("Upgrade") == fileUpgrade {
		d.putFile(w, r, op)
		return
	}
	unblock := func() { // else the read ends with the connection
		_ = http.NewResponseController(w).SetReadDeadline(time.Now())
	}
	if err := op.lend(r.Context(), r.Body, unblock); err != nil {
		writeError(w, takesNoData(r))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func takesNoData(r *http.Request) error {
	return api.Conflict("operation %s takes no data now", r.PathValue("id"))
}

// statusError gives huma the Problem in err's chain.
func statusError(err error) error {
	if err == nil {
		return nil
	}
	return jsonhttp.AsProblem(err)
}

func writeError(w http.ResponseWriter, err error) { jsonhttp.WriteError(w, err) }
