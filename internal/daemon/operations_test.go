package daemon

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/api"
	"banger/internal/vm"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func await(t *testing.T, op *operation) api.Operation {
	t.Helper()
	for {
		s, changed := op.snapshot()
		if s.Status != api.OperationRunning {
			return s
		}
		<-changed
	}
}

func TestOperationOutlivesItsCaller(t *testing.T) {
	o := newOperations(quiet())
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan struct{})
	op, err := o.begin(ctx, "vm.create", "a", false, func(ctx context.Context, op *operation) error {
		<-gone
		op.Stage("one", "first")
		op.Stage("one", "first") // the same stage, not a second one
		op.Stage("two", "second")
		return ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	leave()
	close(gone)
	s := await(t, op)
	if s.Status != api.OperationSucceeded || len(s.Stages) != 2 || s.Ended.IsZero() {
		t.Errorf("%+v", s)
	}
}

func TestOperationStatusTellsWhoEndedIt(t *testing.T) {
	wait := func(ctx context.Context, _ *operation) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	o := newOperations(quiet())
	op, err := o.begin(t.Context(), "k", "t", false, wait)
	if err != nil {
		t.Fatal(err)
	}
	op.cancel(vm.ErrCancelled)
	if s := await(t, op); s.Status != api.OperationCancelled || s.Error.Code != api.CodeCancelled {
		t.Errorf("cancelled: %+v", s)
	}
	op, err = o.begin(t.Context(), "k", "t", false, func(context.Context, *operation) error {
		return api.Conflict("no").WithHint("do this")
	})
	if err != nil {
		t.Fatal(err)
	}
	if s := await(t, op); s.Status != api.OperationFailed || s.Error.Hint != "do this" || s.Error.Status != 409 {
		t.Errorf("failed: %+v", s.Error)
	}
	op, err = o.begin(t.Context(), "k", "t", false, wait)
	if err != nil {
		t.Fatal(err)
	}
	o.close()
	if s := await(t, op); s.Status != api.OperationFailed || s.Error.Code != api.CodeEnding || s.Error.Hint == "" {
		t.Errorf("ended by the daemon: %+v", s)
	}
	if _, err := o.begin(t.Context(), "k", "t", false, wait); err == nil {
		t.Error("an operation began after close")
	}
}

func TestOldOperationsAreForgottenButNotRunningOnes(t *testing.T) {
	o := newOperations(quiet())
	stop := make(chan struct{})
	running, err := o.begin(t.Context(), "k", "running", false, func(context.Context, *operation) error { <-stop; return nil })
	if err != nil {
		t.Fatal(err)
	}
	for range keepFinished + 10 {
		op, err := o.begin(t.Context(), "k", "t", false, func(context.Context, *operation) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		await(t, op)
	}
	if n := len(o.list()); n != keepFinished {
		t.Errorf("%d are kept", n)
	}
	if _, err := o.get(running.op.ID); err != nil {
		t.Error(err)
	}
	close(stop)
	o.close()
}

func TestImportWithoutDataEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOperations(quiet())
		op, err := o.begin(t.Context(), "image.import", "t", true, func(ctx context.Context, op *operation) error {
			_, _, err := op.awaitInput(ctx)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if s := await(t, op); s.Status != api.OperationFailed || s.Error.Code != "no_input" {
			t.Errorf("%+v", s)
		}
		if d := time.Since(begun); d != inputWait {
			t.Errorf("after %s", d)
		}
	})
}

func TestFinishedOperationsAreForgottenAfterADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOperations(quiet())
		op, err := o.begin(t.Context(), "k", "t", false, func(context.Context, *operation) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		if _, err := o.begin(t.Context(), "k", "long", false, func(context.Context, *operation) error { <-stop; return nil }); err != nil {
			t.Fatal(err)
		}
		await(t, op)
		time.Sleep(keepTime - time.Minute)
		if n := len(o.list()); n != 2 {
			t.Errorf("%d after nearly a day", n)
		}
		time.Sleep(2 * time.Minute)
		if left := o.list(); len(left) != 1 || left[0].Target != "long" {
			t.Errorf("after a day: %+v", left)
		}
		close(stop)
		o.close()
	})
}

// A VM whose start bangerd's end cuts off says so in its record.
func TestTheRecordOfACutOffStartSaysWhy(t *testing.T) {
	d := bareDaemon(t)
	v, err := d.vms.Create(t.Context(), api.VMSpec{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancelCause(t.Context())
	end(vm.ErrEnding)
	if err := d.vms.Start(ctx, v.ID, false, &operation{changed: make(chan struct{})}); err == nil {
		t.Fatal("it started")
	}
	got, err := d.vms.Get(t.Context(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.State == api.StateFailed && !strings.Contains(got.Reason, "bangerd is ending") || got.State == api.StateRunning {
		t.Errorf("%s: %q", got.State, got.Reason)
	}
}
