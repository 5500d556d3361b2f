package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/jsonhttp"
	"banger/internal/paths"
)

// serve answers on a socket and returns its path and what stops it.
func serve(t *testing.T, socket string, h http.Handler) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := jsonhttp.NewServer(h)
	go func() { _ = s.Serve(l) }()
	stop = func() {
		_ = l.Close() // the server may not know it yet
		_ = s.Close()
	}
	t.Cleanup(stop)
	return stop
}

func tempSocket(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "d.sock")
}

func newFor(t *testing.T, socket string) *Client {
	t.Helper()
	c, err := New("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func event(w http.ResponseWriter, status api.OperationStatus) {
	_, _ = fmt.Fprintf(w, ": hello\n\nevent: operation\nid: 7\ndata: {\"id\":\"op-1\",\ndata: \"status\":%q}\n\n", status)
	_ = http.NewResponseController(w).Flush()
}

func TestWatchSurvivesARestart(t *testing.T) {
	socket := tempSocket(t)
	var streams atomic.Int32
	seenOne := make(chan struct{})
	first := serve(t, socket, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		streams.Add(1)
		event(w, api.OperationRunning)
		<-r.Context().Done()
	}))
	go func() {
		<-seenOne
		first() // takes the socket with it
		serve(t, socket, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			streams.Add(1)
			event(w, api.OperationRunning)
			event(w, api.OperationSucceeded)
		}))
	}()
	seen := 0
	op, err := newFor(t, socket).Watch(t.Context(), "op-1", func(api.Operation) {
		if seen++; seen == 1 {
			close(seenOne)
		}
	})
	if err != nil || op.Status != api.OperationSucceeded || seen != 3 || streams.Load() != 2 {
		t.Errorf("%v, %+v, %d states, %d streams", err, op, seen, streams.Load())
	}
}

func TestWatchTellsOfALostOperation(t *testing.T) {
	socket := tempSocket(t)
	var asked atomic.Int32
	serve(t, socket, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 1 {
			event(w, api.OperationRunning) // and then it is killed
			return
		}
		jsonhttp.WriteError(w, api.NotFound("there is no operation op-1"))
	}))
	_, err := newFor(t, socket).Watch(t.Context(), "op-1", nil)
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != api.CodeNotFound || p.Detail != "bangerd ended in the middle of it" {
		t.Errorf("got %v", err)
	}
}

func TestWatchEnds(t *testing.T) {
	socket := tempSocket(t)
	serve(t, socket, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "gone") {
			jsonhttp.WriteError(w, api.NotFound("there is no operation gone"))
			return
		}
		event(w, api.OperationRunning)
		<-r.Context().Done()
	}))
	c := newFor(t, socket)
	if _, err := c.Watch(t.Context(), "gone", nil); err == nil || err.Error() != "there is no operation gone" {
		t.Errorf("got %v", err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	op, err := c.Watch(ctx, "op-1", func(api.Operation) { cancel(why) })
	if !errors.Is(err, why) || Ended(op) {
		t.Errorf("got %v, %+v", err, op)
	}
}

func TestStartingDaemonIsWaitedFor(t *testing.T) {
	socket := tempSocket(t)
	time.AfterFunc(150*time.Millisecond, func() {
		serve(t, socket, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { jsonhttp.Write(w, 200, []api.VM{}) }))
	})
	if _, err := newFor(t, socket).VMs(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDialProblems(t *testing.T) {
	for name, tc := range map[string]struct {
		socket       string
		err          error
		detail, hint string
	}{
		"never installed": {paths.DaemonSocket, fs.ErrNotExist, "not installed", "banger machine init"},
		"socket gone":     {"/somewhere/d.sock", fs.ErrNotExist, "no socket /somewhere/d.sock", "systemctl start"},
		"dead":            {"/somewhere/d.sock", unix.ECONNREFUSED, "nothing listens", "journalctl -u bangerd"},
		"not the owner":   {"/somewhere/d.sock", unix.EACCES, "belongs to somebody else", "owner named in"},
	} {
		err := dialProblem(tc.socket, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", tc.err)})
		if name == "never installed" && installed(tc.socket) {
			continue // this very host has banger
		}
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || !strings.Contains(p.Detail, tc.detail) || !strings.Contains(p.Hint, tc.hint) {
			t.Errorf("%s: got %#v", name, err)
		}
	}
}

func TestUnknownRouteOfAnOlderDaemon(t *testing.T) {
	socket := tempSocket(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) {
		jsonhttp.Write(w, 200, api.Version{Version: "v0", API: 0})
	})
	serve(t, socket, mux)
	_, err := newFor(t, socket).VMs(t.Context())
	if err == nil || !strings.Contains(err.Error(), "bangerd is older") {
		t.Errorf("got %v", err)
	}
}

// rawDial lets answer play the daemon's side of one dial.
func rawDial(t *testing.T, answer func(*net.UnixConn)) (net.Conn, error) {
	t.Helper()
	socket := tempSocket(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close()
		head := make([]byte, 0, 1024)
		for !strings.HasSuffix(string(head), "\r\n\r\n") {
			b := make([]byte, 1)
			if _, err := conn.Read(b); err != nil {
				return
			}
			head = append(head, b...)
		}
		answer(conn)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return newFor(t, socket).Dial(ctx, "box", 22)
}

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: banger-stream\r\n"

// passPair sends one end of a socket pair with text and returns the other.
func passPair(conn *net.UnixConn, text string, ends int) *os.File {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	_, _, err = conn.WriteMsgUnix([]byte(text), unix.UnixRights(fds[:ends]...), nil)
	if err != nil {
		panic(err)
	}
	_ = unix.Close(fds[0])
	return os.NewFile(uintptr(fds[1]), "guest")
}

func TestDial(t *testing.T) {
	for name, answer := range map[string]func(*net.UnixConn){
		"descriptor apart": func(c *net.UnixConn) {
			_, _ = io.WriteString(c, switching+"\r\n")
			f := passPair(c, "F", 1)
			_, _ = io.WriteString(f, "hello")
			_ = f.Close()
		},
		"descriptor with the head": func(c *net.UnixConn) {
			f := passPair(c, switching+"\r\nF", 1)
			_, _ = io.WriteString(f, "hello")
			_ = f.Close()
		},
		"descriptor with half the head": func(c *net.UnixConn) {
			f := passPair(c, switching[:30], 1)
			_, _ = io.WriteString(c, switching[30:]+"\r\nF")
			_, _ = io.WriteString(f, "hello")
			_ = f.Close()
		},
		"same connection": func(c *net.UnixConn) {
			_, _ = io.WriteString(c, switching+"Banger-Fd: no\r\n\r\nhello")
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := rawDial(t, answer)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestDialFails(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(*net.UnixConn)
		want   string
	}{
		"problem": {func(c *net.UnixConn) {
			_, _ = io.WriteString(c, "HTTP/1.1 409 Conflict\r\nContent-Length: 70\r\n\r\n"+fmt.Sprintf("%-70s", `{"status":409,"code":"conflict","detail":"VM box is stopped"}`))
		}, "VM box is stopped"},
		"nothing": {func(*net.UnixConn) {}, "cannot read the answer"},
		"no byte": {func(c *net.UnixConn) { _, _ = io.WriteString(c, switching+"\r\n") }, "cannot receive the connection"},
		"byte without descriptor": {func(c *net.UnixConn) {
			_, _ = io.WriteString(c, switching+"\r\nF")
		}, "0 descriptors"},
		"two descriptors": {func(c *net.UnixConn) { _ = passPair(c, switching+"\r\nF", 2).Close() }, "2 descriptors"},
		"wrong byte":      {func(c *net.UnixConn) { _ = passPair(c, switching+"\r\nX", 1).Close() }, "instead of one connection"},
		"not a socket": {func(c *net.UnixConn) {
			f, err := os.Open(os.DevNull)
			if err != nil {
				panic(err)
			}
			_, _, _ = c.WriteMsgUnix([]byte(switching+"\r\nF"), unix.UnixRights(int(f.Fd())), nil)
			_ = f.Close()
		}, "cannot use the connection"},
		"too long a head": {func(c *net.UnixConn) {
			_, _ = io.WriteString(c, switching+"X: "+strings.Repeat("x", 1<<20)+"\r\n\r\n")
		}, "cannot read the answer"},
		"200": {func(c *net.UnixConn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}, "200 OK to a dial"},
	} {
		t.Run(name, func(t *testing.T) {
			before := openFiles(t)
			conn, err := rawDial(t, tc.answer)
			if err == nil {
				_ = conn.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			// What stays is the listener; what is on its way out may take a moment.
			for deadline := time.Now().Add(5 * time.Second); openFiles(t) > before+1; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d descriptors, %d before", openFiles(t), before)
				}
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestDialEndsWithItsContext(t *testing.T) {
	socket := tempSocket(t)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nobody accepts
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := newFor(t, socket).Dial(ctx, "box", 22); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestCommandSaysWhatWentWrong(t *testing.T) {
	for script, want := range map[string]string{
		"echo 'me@lab: Permission denied (publickey).' >&2; exit 255": "cannot reach bangerd at lab: me@lab: Permission denied (publickey).",
		"echo 'sh: banger: not found' >&2; exit 127":                  "not found",
		"exit 1": "cannot reach bangerd at lab",
	} {
		c := NewCommand("lab", "sh", "-c", script)
		_, err := c.VMs(t.Context())
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || !strings.Contains(p.Detail, want) || p.Hint == "" {
			t.Errorf("%s: got %v", script, err)
		}
	}
	_, err := NewCommand("lab", "no-such-program-anywhere").VMs(t.Context())
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != api.CodePrerequisite {
		t.Errorf("got %v", err)
	}
}

func TestControlDirMustBePrivate(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	if len(ShareSSH()) == 0 {
		t.Error("no sharing in a private place")
	}
	if err := os.Chmod(filepath.Join(dir, "banger"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := ShareSSH(); got != nil {
		t.Errorf("shares in an open place: %v", got)
	}
	if err := os.Remove(filepath.Join(dir, "banger")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, "banger")); err != nil {
		t.Fatal(err)
	}
	if got := ShareSSH(); got != nil {
		t.Errorf("follows a link: %v", got)
	}
}
