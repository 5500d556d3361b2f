package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/guest/stream"
)

// execServer is a control port that runs commands.
type execServer struct{ addr, home string }

func serveExec(t testing.TB) *execServer {
	t.Helper()
	here, home := testLauncher(t)
	return &execServer{serveRoute(t, func() *launcher { return here }), home}
}

func serveRoute(t testing.TB, ready func() *launcher) (addr string) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	log := testLogger(t)
	go func() { _ = serveHTTP(l, []route{execRoute(ready, log)}, log) }()
	return l.Addr().String()
}

func connect(t testing.TB, addr string) net.Conn {
	t.Helper()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// start starts a command; hangUp breaks its connection.
func (s *execServer) start(t testing.TB, e guest.Exec) (h *stream.Host, hangUp func()) {
	t.Helper()
	c := connect(t, s.addr)
	h, err := guest.StartExec(t.Context(), c, e)
	if err != nil {
		t.Fatal(err)
	}
	return h, func() { _ = c.Close() }
}

// outcome is what a command left.
type outcome struct {
	exit     stream.Exit
	out, err string
}

// run runs a command to its end with all of in as its input.
func (s *execServer) run(t *testing.T, e guest.Exec, in []byte) outcome {
	t.Helper()
	h, hangUp := s.start(t, e)
	defer hangUp()
	go func() {
		_, _ = h.Stdin.Write(in)
		_ = h.Stdin.Close()
	}()
	var out, errs bytes.Buffer
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(&out, h.Stdout) })
	both.Go(func() { _, _ = io.Copy(&errs, h.Stderr) })
	both.Wait()
	exit, err := h.Wait()
	if err != nil {
		t.Error(err)
	}
	return outcome{exit, out.String(), errs.String()}
}

// await reads stdout up to text.
func await(t *testing.T, h *stream.Host, text string) {
	t.Helper()
	var got []byte
	b := make([]byte, 1)
	for !bytes.Contains(got, []byte(text)) {
		if _, err := h.Stdout.Read(b); err != nil {
			t.Fatalf("the command said %q, then %v", got, err)
		}
		got = append(got, b...)
	}
}

func sh(script string) []string { return []string{"sh", "-c", script} }

func TestExec(t *testing.T) {
	s := serveExec(t)
	plain := s.home + "/plain"
	create(t, plain, "no program", 0o644)
	create(t, s.home+"/no-interpreter", "#!/nowhere/sh\n", 0o755)
	create(t, s.home+"/garbage", "garbage\n", 0o755)
	for name, tt := range map[string]struct {
		exec           guest.Exec
		status         int
		stdout, stderr string
		says           string // a part of why it does not run
	}{
		"success":              {guest.Exec{Argv: []string{"true"}}, 0, "", "", ""},
		"status":               {guest.Exec{Argv: []string{"sh", "-c", "exit 7"}}, 7, "", "", ""},
		"no shell in between":  {guest.Exec{Argv: []string{"printf", "%s", "$HOME;'\""}}, 0, "$HOME;'\"", "", ""},
		"streams apart":        {guest.Exec{Argv: []string{"sh", "-c", "echo out; echo err >&2"}}, 0, "out\n", "err\n", ""},
		"not found":            {guest.Exec{Argv: []string{"no-such-program"}}, 127, "", "", "not found in PATH"},
		"no such file":         {guest.Exec{Argv: []string{"/no/such"}}, 127, "", "", "no such file"},
		"not executable":       {guest.Exec{Argv: []string{plain}}, 126, "", "", "permission denied"},
		"a directory":          {guest.Exec{Argv: []string{"/"}}, 126, "", "", "is a directory"},
		"no interpreter":       {guest.Exec{Argv: []string{s.home + "/no-interpreter"}}, 126, "", "", "no such file"},
		"wrong format":         {guest.Exec{Argv: []string{s.home + "/garbage"}}, 126, "", "", "exec format"},
		"directory":            {guest.Exec{Argv: []string{"pwd"}, Dir: "/"}, 0, "/\n", "", ""},
		"home":                 {guest.Exec{Argv: []string{"pwd"}}, 0, s.home + "\n", "", ""},
		"no such directory":    {guest.Exec{Argv: []string{"pwd"}, Dir: "/no/such"}, 126, "", "", "/no/such"},
		"by a relative path":   {guest.Exec{Argv: []string{"./garbage"}}, 126, "", "", "exec format"},
		"background process":   {guest.Exec{Argv: []string{"sh", "-c", "sleep 60 & echo started; kill $!"}}, 0, "started\n", "", ""},
		"late output":          {guest.Exec{Argv: []string{"sh", "-c", "(sleep 0.1; echo late) & echo early"}}, 0, "early\nlate\n", "", ""},
		"variables":            {guest.Exec{Argv: []string{"sh", "-c", `echo $FROM_IMAGE $FROM_CLIENT $BOTH $USER "$LANG" ${TERM-none}`}, Env: []string{"FROM_CLIENT=2", "BOTH=client"}}, 0, "1 2 client root C.UTF-8 none\n", "", ""},
		"killed":               {guest.Exec{Argv: []string{"sh", "-c", "kill -KILL $$"}}, 137, "", "", ""},
		"killed, no wire name": {guest.Exec{Argv: []string{"sh", "-c", "kill -16 $$"}}, 128 + 16, "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := s.run(t, tt.exec, nil)
			if got.exit.Code != tt.status || got.out != tt.stdout || got.err != tt.stderr || !strings.Contains(got.exit.Error, tt.says) || (got.exit.Error == "") != (tt.says == "") {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestExecLoginShell(t *testing.T) {
	got := serveExec(t).run(t, guest.Exec{}, []byte("echo $0\nexit 4\n"))
	if want := (outcome{stream.Exit{Code: 4}, "-sh\n", ""}); got != want {
		t.Errorf("got %+v", got)
	}
}

func TestExecRefused(t *testing.T) {
	ready, here := serveExec(t).addr, (*launcher)(nil)
	waiting := serveRoute(t, func() *launcher { return here })
	for name, tt := range map[string]struct {
		addr   string
		exec   guest.Exec
		status int
	}{
		"before the identity": {waiting, guest.Exec{Argv: sh("exit")}, 409},
		"relative directory":  {ready, guest.Exec{Dir: "x"}, 400},
		"NUL":                 {ready, guest.Exec{Argv: []string{"a\x00"}}, 400},
		"variable":            {ready, guest.Exec{Env: []string{"=x"}}, 400},
		"too many variables":  {ready, guest.Exec{Env: slices.Repeat([]string{"A=B"}, 2000)}, 400},
		"terminal":            {ready, guest.Exec{TTY: &guest.TTY{Term: "\x00"}}, 400},
	} {
		h, err := guest.StartExec(t.Context(), connect(t, tt.addr), tt.exec)
		if err == nil {
			_, err = h.Wait()
		}
		if p, ok := errors.AsType[*api.Problem](err); !ok || p.Status != tt.status {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := connect(t, ready)
	if _, err := io.WriteString(c, "POST /v1/exec HTTP/1.1\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, len("HTTP/1.1 426"))
	if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "HTTP/1.1 426" {
		t.Errorf("without upgrade: %q, %v", answer, err)
	}
}

func TestStartExecEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("unix", t.TempDir()+"/s") // it never accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := connect(t, l.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	h, err := guest.StartExec(ctx, c, guest.Exec{})
	if err == nil {
		_, err = h.Wait()
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is: %v", err)
	}
}

// A command's input must not become a request where the command is refused.
func TestRefusedInputIsNoRequest(t *testing.T) {
	c := connect(t, serveRoute(t, func() *launcher { return nil }))
	smuggled := "x /v1/exec HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
	refused := "POST /v1/exec HTTP/1.1\r\nUpgrade: banger-exec\r\nContent-Length: 2\r\n\r\n{}"
	if _, err := io.WriteString(c, refused+"\x01\x00\x00\x00\x30"+smuggled+smuggled); err != nil {
		t.Fatal(err)
	}
	answers, err := io.ReadAll(c)
	if n := strings.Count(string(answers), "HTTP/1.1 "); n != 1 || !strings.HasPrefix(string(answers), "HTTP/1.1 409") {
		t.Errorf("%d answers, %v: %q", n, err, answers)
	}
}

// The answer to a silent command must not wait for its end, and that to a quick
// one leaves with its end, in one write.
func TestAnswerLeavesWithTheFirstFrame(t *testing.T) {
	for name, quick := range map[string]bool{"quick": true, "silent": false} {
		near, far := net.Pipe() // a read is a write
		c := newUpgradedConn(far, "x")
		go func() {
			if quick {
				_, _ = c.Write([]byte("frame"))
			}
		}()
		b := make([]byte, 1000)
		n, err := near.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), "HTTP/1.1 101") || strings.HasSuffix(string(b[:n]), "\r\n\r\nframe") != quick {
			t.Errorf("%s: %q, %v", name, b[:n], err)
		}
		go func() { _, _ = c.Write([]byte("next")) }()
		if n, err := near.Read(b); err != nil || string(b[:n]) != "next" {
			t.Errorf("%s: then %q, %v", name, b[:n], err)
		}
		_ = c.Close()
	}
}

func TestExecSignals(t *testing.T) {
	s := serveExec(t)
	for name, code := range map[string]int{"INT": 130, "TERM": 143, "KILL": 137, "USR1": 138, "STKFLT": 144} {
		h, _ := s.start(t, guest.Exec{Argv: sh("echo ready; exec sleep 60")})
		go func() { _, _ = h.Stdin.Write(make([]byte, 1<<20)) }() // more than anybody takes
		await(t, h, "ready")
		for _, n := range []string{"NONSENSE", "", name} {
			if err := h.Signal(n); err != nil {
				t.Fatal(err)
			}
		}
		if exit, err := h.Wait(); err != nil || exit != (stream.Exit{Code: code, Signal: name}) {
			t.Errorf("%s: %+v, %v", name, exit, err)
		}
	}
}

func TestExecBinaryRoundTrip(t *testing.T) {
	data := make([]byte, 20<<20)
	_, _ = rand.Read(data)
	got := serveExec(t).run(t, guest.Exec{Argv: []string{"cat"}}, data)
	if got.out != string(data) || got.exit.Code != 0 {
		t.Errorf("%d bytes came back, %+v", len(got.out), got.exit)
	}
}

func TestExecInputNobodyReads(t *testing.T) {
	s := serveExec(t)
	for _, script := range []string{"exit 5", "exec <&-; echo done; exit 5", "sleep 60 & exit 5"} {
		if got := s.run(t, guest.Exec{Argv: sh(script)}, make([]byte, 8<<20)); got.exit.Code != 5 {
			t.Errorf("%s: %+v", script, got)
		}
	}
}

func TestExecLostHostHangsUp(t *testing.T) {
	// A command would inherit from nohup that the signal is ignored; not one that is heard.
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, syscall.SIGHUP)
	defer signal.Stop(heard)
	s := serveExec(t)
	for name, tty := range map[string]*guest.TTY{"pipes": nil, "terminal": {Term: "dumb", Rows: 24, Cols: 80}} {
		t.Run(name, func(t *testing.T) {
			mark := t.TempDir() + "/mark"
			h, hangUp := s.start(t, guest.Exec{Argv: sh(hupMark(mark)), TTY: tty})
			await(t, h, "ready")
			hangUp()
			if err := waitForFile(mark, 10*time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestExecTerminal(t *testing.T) {
	script := `test -t 0 && test -t 2 && echo $TERM; stty size; read x; stty size; cat; exit 9`
	h, _ := serveExec(t).start(t, guest.Exec{Argv: sh(script), TTY: &guest.TTY{Term: "xterm", Rows: 30, Cols: 100}})
	await(t, h, "xterm\r\n30 100\r\n")
	if err := h.Resize(stream.Size{Rows: 40, Columns: 120}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(h.Stdin, "go\nabc\n"); err != nil {
		t.Fatal(err)
	}
	if err := h.Stdin.Close(); err != nil { // ends cat
		t.Fatal(err)
	}
	await(t, h, "40 120\r\n")
	rest, err := io.ReadAll(h.Stdout)
	if err != nil || !strings.Contains(string(rest), "abc\r\n") {
		t.Errorf("got %q, %v", rest, err)
	}
	if exit, err := h.Wait(); err != nil || exit.Code != 9 {
		t.Errorf("exit %+v, %v", exit, err)
	}
}

func TestExecTerminalCtrlC(t *testing.T) {
	h, _ := serveExec(t).start(t, guest.Exec{Argv: sh("echo ready; exec sleep 60"), TTY: &guest.TTY{Term: "dumb", Rows: 24, Cols: 80}})
	await(t, h, "ready")
	if _, err := h.Stdin.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	if exit, err := h.Wait(); err != nil || exit.Code != 130 {
		t.Errorf("exit %+v, %v", exit, err)
	}
}

func TestExecsLeaveNothing(t *testing.T) {
	s := serveExec(t)
	checkLeavesNothing(t, func() {
		for _, tty := range []*guest.TTY{nil, {Term: "dumb"}} {
			for _, argv := range [][]string{{"true"}, {"no-such-program"}} {
				s.run(t, guest.Exec{Argv: argv, TTY: tty}, nil)
			}
		}
	})
}
