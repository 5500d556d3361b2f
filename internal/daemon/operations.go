package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"banger/api"
	"banger/internal/jsonhttp"
	"banger/internal/vm"
)

// A finished operation stays readable for keepTime, if it is one of the last
// keepFinished, and not after bangerd's end.
const (
	keepFinished = 512
	keepTime     = 24 * time.Hour
)

// inputWait is how long an import waits for its data to begin.
const inputWait = time.Minute

// operations is the register of what the daemon is doing and has just done.
type operations struct {
	log *slog.Logger
	wg  sync.WaitGroup

	mu      sync.Mutex
	closing bool
	byID    map[string]*operation
	order   []string // oldest first
}

func newOperations(log *slog.Logger) *operations {
	return &operations{log: log, byID: map[string]*operation{}}
}

// operation is one change under way. It is the vm.Reporter of that change.
type operation struct {
	cancel context.CancelCauseFunc
	over   <-chan struct{}   // closed when it was cancelled or has ended
	input  chan *inputStream // nil: takes no input

	mu      sync.Mutex
	op      api.Operation
	stageAt time.Time
	changed chan struct{} // closed at the next change
}

// inputStream is the body of one PUT …/input, lent to the operation until done
// is closed.
type inputStream struct {
	io.Reader
	done chan struct{}
}

// begin starts run in the background and returns at once. run goes on when the
// caller leaves; it is cancelled by DELETE and by the daemon's end.
func (o *operations) begin(ctx context.Context, kind, target string, takesInput bool,
	run func(context.Context, *operation) error) (*operation, error) {
	return o.beginOn(ctx, kind, target, nil, takesInput, run)
}

// beginOn is begin for a change of a VM, which the operation shows from the
// first answer on.
func (o *operations) beginOn(ctx context.Context, kind, target string, v *api.VM, takesInput bool,
	run func(context.Context, *operation) error) (*operation, error) {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	op := &operation{changed: make(chan struct{}), op: api.Operation{ID: "op-" + hex.EncodeToString(b[:]),
		Kind: kind, Target: target, VM: v, Status: api.OperationRunning, Stages: []api.Stage{}, Begun: time.Now().UTC()}}
	if takesInput {
		op.input = make(chan *inputStream)
	}
	ctx, op.cancel = context.WithCancelCause(jsonhttp.WithOperation(context.WithoutCancel(ctx), op.op.ID))
	op.over = ctx.Done()

	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closing {
		return nil, api.Problemf(503, api.CodeUnavailable, "bangerd is ending").WithHint("try again in a moment")
	}
	o.byID[op.op.ID] = op
	o.order = append(o.order, op.op.ID)
	o.forget()
	o.wg.Go(func() { o.run(ctx, op, run) })
	return op, nil
}

func (o *operations) run(ctx context.Context, op *operation, run func(context.Context, *operation) error) {
	o.log.InfoContext(ctx, "operation begins", "kind", op.op.Kind, "target", op.op.Target)
	err := run(ctx, op)
	op.finish(ctx, err)
	final, _ := op.snapshot()
	attrs := []any{"kind", final.Kind, "target", final.Target, "status", string(final.Status), "duration", final.Ended.Sub(final.Begun)}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	o.log.InfoContext(ctx, "operation ended", attrs...)
	op.cancel(nil)
}

// forget drops the finished operations that are too many or too old. It needs
// o.mu.
func (o *operations) forget() {
	surplus := len(o.order) - keepFinished
	o.order = slices.DeleteFunc(o.order, func(id string) bool {
		s, _ := o.byID[id].snapshot()
		if s.Status == api.OperationRunning || surplus <= 0 && time.Since(s.Ended) < keepTime {
			return false
		}
		surplus--
		delete(o.byID, id)
		return true
	})
}

func (o *operations) get(id string) (*operation, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if op := o.byID[id]; op != nil {
		return op, nil
	}
	return nil, api.NotFound("there is no operation %q", id).
		WithHint("the last %d are kept for a day, until bangerd restarts", keepFinished)
}

func (o *operations) list() []api.Operation {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forget()
	out := make([]api.Operation, 0, len(o.order))
	for _, id := range o.order {
		op, _ := o.byID[id].snapshot()
		out = append(out, op)
	}
	return out
}

// close cancels what is under way, lets nothing new begin and waits.
func (o *operations) close() {
	o.mu.Lock()
	o.closing = true
	for _, op := range o.byID {
		if s, _ := op.snapshot(); s.Status == api.OperationRunning {
			o.log.Warn("bangerd is told to end in the middle of an operation", "operation", s.ID, "kind", s.Kind, "target", s.Target)
		}
		op.cancel(vm.ErrEnding)
	}
	o.mu.Unlock()
	o.wg.Wait()
}

// cancelOn cancels what is under way on a VM.
func (o *operations) cancelOn(id string, cause error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, op := range o.byID {
		if s, _ := op.snapshot(); s.VM != nil && s.VM.ID == id {
			op.cancel(cause) // one that has ended does not mind
		}
	}
}

// Stage ends the stage before and begins a new one.
func (op *operation) Stage(name, detail string) {
	op.mu.Lock()
	defer op.mu.Unlock()
	if n := len(op.op.Stages); n > 0 && op.op.Stages[n-1].Detail == detail {
		return // several phases may belong to one stage
	}
	op.endStage()
	op.op.Stages = append(op.op.Stages, api.Stage{Name: name, Detail: detail})
	op.stageAt = time.Now()
	op.announce()
}

// bytes records how far the present stage is; total 0 = unknown.
func (op *operation) bytes(done, total int64) {
	op.mu.Lock()
	defer op.mu.Unlock()
	if n := len(op.op.Stages); n > 0 {
		op.op.Stages[n-1].Done, op.op.Stages[n-1].Total = done, total
		op.announce()
	}
}

func (op *operation) setVM(v *api.VM) {
	op.mu.Lock()
	defer op.mu.Unlock()
	op.op.VM = v
}

func (op *operation) finish(ctx context.Context, err error) {
	op.mu.Lock()
	defer op.mu.Unlock()
	op.endStage()
	op.op.Ended = time.Now().UTC()
	op.op.Status = api.OperationSucceeded
	if err != nil {
		op.op.Status = api.OperationFailed
		op.op.Error = jsonhttp.AsProblem(err)
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, vm.ErrCancelled):
			op.op.Status = api.OperationCancelled
			op.op.Error.Code = api.CodeCancelled
		case errors.Is(cause, vm.ErrEnding):
			op.op.Error.Status, op.op.Error.Code = http.StatusServiceUnavailable, api.CodeEnding
			op.op.Error.Hint = "bangerd was stopped or restarted in the middle of it: look at what it was about and repeat it"
		}
	}
	op.announce()
}

// endStage and announce need op.mu.
func (op *operation) endStage() {
	if n := len(op.op.Stages); n > 0 && op.op.Stages[n-1].Milliseconds == 0 {
		op.op.Stages[n-1].Milliseconds = float64(time.Since(op.stageAt).Microseconds()) / 1000
	}
}

func (op *operation) announce() {
	close(op.changed)
	op.changed = make(chan struct{})
}

// snapshot returns a copy and a channel that is closed at the next change.
func (op *operation) snapshot() (api.Operation, <-chan struct{}) {
	op.mu.Lock()
	defer op.mu.Unlock()
	c := op.op
	c.Stages = slices.Clone(c.Stages)
	return c, op.changed
}

func (op *operation) finished() bool {
	s, _ := op.snapshot()
	return s.Status != api.OperationRunning
}

// lend gives r to the import that waits for it and returns when it is no longer
// read. unblock ends a read that waits for a sender that stalls.
func (op *operation) lend(ctx context.Context, r io.Reader, unblock func()) error {
	in := &inputStream{Reader: r, done: make(chan struct{})}
	select {
	case op.input <- in:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-op.over:
		return errors.New("the operation is over")
	}
	select {
	case <-in.done:
	case <-op.over: // cancelled
		unblock()
		<-in.done
	}
	return nil
}

// awaitInput waits for the data of an import. release must be called when the
// data is no longer read.
func (op *operation) awaitInput(ctx context.Context) (r io.Reader, release func(), err error) {
	late := time.NewTimer(inputWait)
	defer late.Stop()
	select {
	case in := <-op.input:
		return in, func() { close(in.done) }, nil
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	case <-late.C:
		return nil, nil, api.Problemf(408, "no_input", "no data came within %s", inputWait)
	}
}
