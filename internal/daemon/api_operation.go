package daemon

import (
	"context"
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
	// Not until the daemon ends: it ends the operations first, and who watches
	// one sees that.
	return stream(ctx, func(ctx context.Context, s *eventStream) error { return tellOperation(ctx, s, op) }), nil
}

// tellOperation tells the operation at each change until it is finished or the
// watcher has left.
func tellOperation(ctx context.Context, s *eventStream, op *operation) error {
	var last api.Operation
	for {
		now, changed := op.snapshot()
		if err := s.tell("operation", 0, now); err != nil || now.Status != api.OperationRunning {
			return err
		}
		if len(now.Stages) == len(last.Stages) && len(now.Stages) > 0 { // only bytes moved
			select {
			case <-time.After(eventPause):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		last = now
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
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
