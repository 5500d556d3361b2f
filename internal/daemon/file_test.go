package daemon

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
)

// passing serves one operation that reads input, and is a caller of it that has
// got the answer 101.
func passing(t *testing.T, read func(io.Reader) error) (caller *net.UnixConn, answers *bufio.Reader, op *operation) {
	t.Helper()
	d := &Daemon{log: quiet(), ops: newOperations(quiet())}
	t.Cleanup(d.ops.close)
	op, err := d.ops.begin(t.Context(), "image.import", "t", true, func(ctx context.Context, op *operation) error {
		r, release, err := op.awaitInput(ctx)
		if err != nil {
			return err
		}
		defer release()
		return read(r)
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/operations/{id}/input", d.putInput)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: mux}}
	s.Start()
	t.Cleanup(s.Close)
	var dialer net.Dialer
	c, err := dialer.DialContext(t.Context(), "unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, "PUT /v1/operations/"+op.op.ID+"/input HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: banger-file\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answers = bufio.NewReader(c)
	if got := status(t, answers); got != http.StatusSwitchingProtocols {
		t.Fatalf("the answer is %d", got)
	}
	return c.(*net.UnixConn), answers, op
}

func status(t *testing.T, r *bufio.Reader) int {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

func pass(t *testing.T, c *net.UnixConn, files ...*os.File) {
	t.Helper()
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix([]byte{'F'}, rights, nil); err != nil {
		t.Fatal(err)
	}
}

func fileWith(t *testing.T, text string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAPassedFileIsTheInput(t *testing.T) {
	got := make(chan string, 1)
	c, answers, op := passing(t, func(r io.Reader) error {
		raw, err := io.ReadAll(r)
		got <- string(raw)
		return err
	})
	pass(t, c, fileWith(t, "tar"))
	if text, code := <-got, status(t, answers); text != "tar" || code != http.StatusNoContent {
		t.Errorf("%q, %d", text, code)
	}
	if s := await(t, op); s.Status != api.OperationSucceeded {
		t.Errorf("%+v", s)
	}
}

// What could block for ever, or is more than was asked for, is no input.
func TestOnlyOneRegularFileIsTaken(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for name, files := range map[string][]*os.File{
		"none": nil, "a pipe": {r}, "two": {fileWith(t, "a"), fileWith(t, "b")},
	} {
		c, answers, _ := passing(t, func(io.Reader) error { return errors.New("it is read") })
		pass(t, c, files...)
		if code := status(t, answers); code != http.StatusConflict {
			t.Errorf("%s: %d", name, code)
		}
	}
}

// A caller that is gone must not leave a finished import behind.
func TestAPassedFileEndsWithItsCaller(t *testing.T) {
	reading, gone := make(chan struct{}), make(chan struct{})
	c, _, op := passing(t, func(r io.Reader) error {
		close(reading)
		<-gone
		var err error
		for err == nil { // an endless file
			_, err = r.Read(nil)
		}
		return err
	})
	pass(t, c, fileWith(t, "tar"))
	<-reading
	_ = c.Close()
	close(gone)
	if s := await(t, op); s.Status != api.OperationFailed {
		t.Errorf("%+v", s)
	}
}
