package firecracker

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// slowVMM answers one request when it is told to, and says then whether its client
// was still there.
type slowVMM struct {
	client      *Client
	calls       Calls
	asked, late chan struct{}
	there       chan error
}

func newSlowVMM(t *testing.T) *slowVMM {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	v := &slowVMM{asked: make(chan struct{}), late: make(chan struct{}), there: make(chan error, 1)}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(v.answer)}}
	srv.Start()
	t.Cleanup(srv.Close)
	v.client = New(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", sock)
	}, &v.calls)
	return v
}

func (v *slowVMM) answer(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		v.there <- err
		return
	}
	defer conn.Close()
	close(v.asked)
	<-v.late
	// A closed connection is read to its end, one that waits has nothing to read.
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		v.there <- errors.Join(errors.New("its connection was closed before the answer"), err)
		return
	}
	_, err = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
	v.there <- err
}

// giveUp asks, and does not wait for the answer.
func (v *slowVMM) giveUp(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-v.asked; cancel() }()
	if err := v.client.Resume(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call says %v", err)
	}
	v.client.Close()
}

func TestACallThatIsGivenUpKeepsItsConnection(t *testing.T) {
	v := newSlowVMM(t)
	v.giveUp(t)
	close(v.late)
	if err := <-v.there; err != nil {
		t.Error(err)
	}
	if due := v.calls.Close(time.Minute); due != 0 {
		t.Errorf("%d answers are due", due)
	}
	if err := v.client.Resume(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("after the end: %v", err)
	}
}

func TestTheEndWaitsForAnswersButNotForEver(t *testing.T) {
	v := newSlowVMM(t)
	v.giveUp(t)
	if due := v.calls.Close(50 * time.Millisecond); due != 1 {
		t.Errorf("%d answers are due, want 1", due)
	}
	close(v.late)
	if err := <-v.there; err != nil {
		t.Error(err)
	}
}

func TestACallOfNobodyIsNotMade(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("over")
	cancel(cause)
	c := New(func(context.Context) (net.Conn, error) { t.Error("dialled"); return nil, errors.New("no") }, new(Calls))
	if err := c.Pause(ctx); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}
