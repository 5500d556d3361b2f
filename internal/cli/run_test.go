package cli

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"banger/api"
)

// result is what a run of the command left.
type result struct {
	code     int
	out, err string
}

// banger runs the command against d.
func (d *fakeDaemon) banger(stdin io.Reader, args ...string) result {
	var out, errs bytes.Buffer
	a := &App{In: stdin, Out: &out, Err: &errs, Getenv: d.env}
	code := a.Run(args)
	return result{code, out.String(), errs.String()}
}

func (d *fakeDaemon) env(name string) string {
	return map[string]string{"BANGER_HOST": "unix://" + d.socket, "FROM_US": "ours", "TERM": "xterm"}[name]
}

func (d *fakeDaemon) running(names ...string) {
	for _, n := range names {
		d.put(api.VM{ID: vmID, Name: n, State: api.StateRunning, Image: "debian", Kernel: "host", VCPU: 2, MemoryMiB: 512, CreatedAt: time.Now()})
	}
}

func TestExitCodes(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	for name, tc := range map[string]struct {
		argv []string
		want int
		says string
	}{
		"success":           {[]string{"true"}, 0, ""},
		"failure":           {[]string{"sh", "-c", "exit 7"}, 7, ""},
		"looks like ours":   {[]string{"sh", "-c", "exit 125"}, 125, ""},
		"largest":           {[]string{"sh", "-c", "exit 255"}, 255, ""},
		"killed":            {[]string{"sh", "-c", "kill -9 $$"}, 137, ""},
		"terminated":        {[]string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		"no such command":   {[]string{"no-such-command-anywhere"}, 127, "banger: cannot run no-such-command-anywhere: not found in PATH\n"},
		"not a program":     {[]string{"/etc/passwd"}, 126, "banger: cannot run /etc/passwd: execute /etc/passwd: permission denied\n"},
		"argv is not split": {[]string{"sh", "-c", `[ "$1" = "a b  'c'" ]`, "sh", "a b  'c'"}, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := d.banger(strings.NewReader(""), append([]string{"vm", "exec", "box", "--"}, tc.argv...)...)
			if got.code != tc.want || got.out != "" || got.err != tc.says {
				t.Errorf("got %+v, want only code %d", got, tc.want)
			}
		})
	}
}

func TestStreamsStayApart(t *testing.T) {
	d := newFakeDaemon(t)
	got := d.banger(strings.NewReader(""), "vm", "run", "--rm", "--", "sh", "-c", "echo out; echo err >&2")
	if want := (result{0, "out\n", "err\n"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if left := d.names(); len(left) != 0 {
		t.Errorf("VMs left: %v", left)
	}
}

func TestStdinIsBinarySafe(t *testing.T) {
	for _, noFD := range []bool{false, true} {
		d := newFakeDaemon(t)
		d.noFD = noFD
		d.running("box")
		data := make([]byte, 9<<20+17)
		_, _ = rand.Read(data)
		sum := sha256.Sum256(data)
		got := d.banger(bytes.NewReader(data), "vm", "exec", "box", "--", "sha256sum")
		if want := hex.EncodeToString(sum[:]) + "  -\n"; got.out != want || got.code != 0 {
			t.Errorf("noFD %v: got %+v, want %s", noFD, got, want)
		}
		back := d.banger(bytes.NewReader(data), "vm", "exec", "box", "--", "cat")
		if back.out != string(data) || back.code != 0 {
			t.Errorf("noFD %v: %d bytes came back changed, code %d, %s", noFD, len(back.out), back.code, back.err)
		}
	}
}

func TestEnvironmentAndDirectory(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	got := d.banger(strings.NewReader(""), "vm", "exec", "box", "-e", "A=x=y z", "-e", "FROM_US", "-w", "/usr", "--", "sh", "-c", `echo "$A|$FROM_US|$(pwd)"`)
	if got.out != "x=y z|ours|/usr\n" || got.code != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestTooLongACommand(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	if got := d.banger(strings.NewReader(""), "vm", "exec", "box", "--", "true", strings.Repeat("x", 100<<10)); got.code != 0 {
		t.Errorf("got %+v", got)
	}
	args := append([]string{"vm", "exec", "box", "--", "true"}, slices.Repeat([]string{strings.Repeat("x", 100<<10)}, 11)...)
	got := d.banger(strings.NewReader(""), args...)
	if got.code != exitOwn || !strings.Contains(got.err, "are more than") {
		t.Errorf("got %+v", got)
	}
}

func TestRunKeepsTheVMUnlessToldOtherwise(t *testing.T) {
	d := newFakeDaemon(t)
	if got := d.banger(strings.NewReader(""), "vm", "run", "--name", "box", "--", "sh", "-c", "exit 3"); got.code != 3 || got.err != "" {
		t.Errorf("got %+v", got)
	}
	if left := d.names(); !slices.Equal(left, []string{"box"}) {
		t.Errorf("VMs left: %v", left)
	}
	if got := d.banger(strings.NewReader(""), "vm", "run", "-d", "--name", "two"); got != (result{0, "two\n", ""}) {
		t.Errorf("got %+v", got)
	}
}

func TestRunRemovesTheVMAfterAFailedStart(t *testing.T) {
	d := newFakeDaemon(t)
	d.startFail = api.Problemf(507, api.CodeNoSpace, "cannot make the overlay: no space").WithHint("make room")
	got := d.banger(strings.NewReader(""), "vm", "run", "--rm", "--", "true")
	want := "banger: cannot make the overlay: no space\nhint: make room\n"
	if got.code != exitOwn || got.err != want || got.out != "" {
		t.Errorf("got %+v, want %q", got, want)
	}
	if left := d.names(); len(left) != 0 {
		t.Errorf("VMs left: %v", left)
	}
	// Without --rm the failed VM stays to be looked at.
	d.banger(strings.NewReader(""), "vm", "run", "--", "true")
	if left := d.names(); len(left) != 1 {
		t.Errorf("VMs left: %v", left)
	}
}

func TestRunNeverDeletesAnothersVM(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	got := d.banger(strings.NewReader(""), "vm", "run", "--rm", "--name", "box", "--", "true")
	if got.code != exitOwn || !strings.Contains(got.err, "name box is taken") {
		t.Errorf("got %+v", got)
	}
	if left := d.names(); len(left) != 1 {
		t.Errorf("the other VM is gone")
	}
}

// started is a running command whose signals and output a test controls.
type started struct {
	app  *App
	out  *watchedBuffer
	err  *watchedBuffer
	code chan int
}

// watchedBuffer tells when a text has been written to it.
type watchedBuffer struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	grew chan struct{}
}

func newWatchedBuffer() *watchedBuffer { return &watchedBuffer{grew: make(chan struct{}, 1)} }

func (b *watchedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Write(p)
	select {
	case b.grew <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (b *watchedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *watchedBuffer) await(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !strings.Contains(b.String(), text) {
		select {
		case <-b.grew:
		case <-deadline:
			t.Fatalf("no %q in %q", text, b.String())
		}
	}
}

func (d *fakeDaemon) background(stdin io.Reader, args ...string) *started {
	s := &started{out: newWatchedBuffer(), err: newWatchedBuffer(), code: make(chan int, 1)}
	s.app = &App{In: stdin, Out: s.out, Err: s.err, Getenv: d.env}
	go func() { s.code <- s.app.Run(args) }()
	return s
}

func (s *started) wait(t *testing.T) int {
	t.Helper()
	select {
	case code := <-s.code:
		return code
	case <-time.After(20 * time.Second):
		t.Fatalf("banger does not end; out %q, err %q", s.out, s.err)
		return 0
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	for _, tc := range []struct {
		sig  syscall.Signal
		want int
	}{{syscall.SIGINT, 130}, {syscall.SIGTERM, 143}, {syscall.SIGHUP, 129}, {syscall.SIGUSR1, 138}} {
		t.Run(tc.sig.String(), func(t *testing.T) {
			// A command would inherit from nohup that the signal is ignored; not one that is heard.
			heard := make(chan os.Signal, 1)
			signal.Notify(heard, tc.sig)
			defer signal.Stop(heard)
			d := newFakeDaemon(t)
			r, w := io.Pipe()
			defer w.Close()
			s := d.background(r, "vm", "run", "--rm", "--", "sh", "-c", "echo ready; exec sleep 60")
			s.out.await(t, "ready")
			s.app.signals.deliver(tc.sig)
			if code := s.wait(t); code != tc.want {
				t.Errorf("exit code %d, want %d; %s", code, tc.want, s.err)
			}
			if left := d.names(); len(left) != 0 {
				t.Errorf("VMs left: %v", left)
			}
		})
	}
}

func TestCommandMayHandleSignals(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	r, w := io.Pipe()
	defer w.Close()
	s := d.background(r, "vm", "exec", "box", "--", "sh", "-c", `trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done`)
	s.out.await(t, "ready")
	s.app.signals.deliver(syscall.SIGTERM)
	if code := s.wait(t); code != 5 || s.out.String() != "ready\nbye\n" {
		t.Errorf("exit code %d, output %q", code, s.out)
	}
}

func TestSignalToAProcessAndItsGroupIsOne(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	r, w := io.Pipe()
	defer w.Close()
	s := d.background(r, "vm", "exec", "box", "--", "sh", "-c", `trap 'trap "" TERM; sleep 0.3; echo cleaned; exit 7' TERM; echo ready; while :; do sleep 0.05; done`)
	s.out.await(t, "ready")
	s.app.signals.deliver(syscall.SIGTERM)
	s.app.signals.deliver(syscall.SIGTERM)
	if code := s.wait(t); code != 7 || s.out.String() != "ready\ncleaned\n" {
		t.Errorf("exit code %d, output %q", code, s.out)
	}
}

func TestSecondInterruptGivesUp(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		t.Run(sig.String(), func(t *testing.T) {
			d := newFakeDaemon(t)
			r, w := io.Pipe()
			defer w.Close()
			s := d.background(r, "vm", "run", "--rm", "--", "sh", "-c", "trap '' INT TERM; echo ready; exec sleep 60")
			s.out.await(t, "ready")
			s.app.signals.deliver(sig)
			time.Sleep(2 * bounce)
			s.app.signals.deliver(sig)
			if code := s.wait(t); code != want {
				t.Errorf("exit code %d", code)
			}
			if left := d.names(); len(left) != 0 {
				t.Errorf("VMs left: %v", left)
			}
		})
	}
}

func TestInterruptWhileStarting(t *testing.T) {
	for _, args := range [][]string{
		{"vm", "run", "--rm", "--", "true"},
		{"vm", "run", "--", "true"},
		{"vm", "run", "-d"},
	} {
		d := newFakeDaemon(t)
		d.hang = make(chan struct{})
		s := d.background(strings.NewReader(""), append([]string{"-v"}, args...)...)
		for len(d.names()) == 0 { // the fake has no event for that
			time.Sleep(time.Millisecond)
		}
		s.app.signals.deliver(syscall.SIGINT)
		if code := s.wait(t); code != 130 {
			t.Errorf("%v: exit code %d, %s", args, code, s.err)
		}
		if left := d.names(); len(left) != 0 {
			t.Errorf("%v: VMs left: %v", args, left)
		}
		if !slices.Contains(d.called(), "DELETE /v1/operations/op-1") {
			t.Errorf("%v: not cancelled: %v", args, d.called())
		}
	}
}

// brokenPipe fails as a pipe without a reader does.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestBrokenStdoutEndsTheCommand(t *testing.T) {
	d := newFakeDaemon(t)
	var errs bytes.Buffer
	a := &App{In: strings.NewReader(""), Out: brokenPipe{}, Err: &errs, Getenv: d.env}
	if code := a.Run([]string{"vm", "run", "--rm", "--", "yes"}); code != 141 {
		t.Errorf("exit code %d, %s", code, errs.String())
	}
	if left := d.names(); len(left) != 0 {
		t.Errorf("VMs left: %v", left)
	}
}

func TestTerminal(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	if err := pty.Setsize(slave, &pty.Winsize{Cols: 101, Rows: 37}); err != nil {
		t.Fatal(err)
	}
	screen := newWatchedBuffer()
	go func() { _, _ = io.Copy(screen, master) }()
	a := &App{In: slave, Out: slave, Err: slave, Getenv: d.env}
	code := make(chan int, 1)
	go func() {
		code <- a.Run([]string{"vm", "exec", "box", "--", "sh", "-c", "trap 'stty size' WINCH; stty size; test -t 0 && test -t 1 && echo term $TERM ready; until read x; do :; done; echo got $x; exit 4"})
	}()
	screen.await(t, "37 101\r\nterm xterm ready")
	if err := pty.Setsize(slave, &pty.Winsize{Cols: 77, Rows: 20}); err != nil {
		t.Fatal(err)
	}
	a.signals.deliver(syscall.SIGWINCH)
	screen.await(t, "20 77")
	if _, err := master.WriteString("hello\r"); err != nil {
		t.Fatal(err)
	}
	screen.await(t, "got hello")
	if c := <-code; c != 4 {
		t.Errorf("exit code %d", c)
	}
}

func TestNoTerminalWhenForbidden(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	got := d.banger(strings.NewReader(""), "vm", "exec", "box", "-T", "--", "tty")
	if got.code != 1 || got.out != "not a tty\n" {
		t.Errorf("got %+v", got)
	}
	if got := d.banger(strings.NewReader(""), "vm", "exec", "box", "-t", "--", "tty"); got.code != 0 || !strings.HasPrefix(got.out, "/dev/pts/") {
		t.Errorf("got %+v", got)
	}
}

func TestExecAsksForTheConnectionOnly(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	if got := d.banger(strings.NewReader(""), "vm", "exec", "box", "--", "true"); got.code != 0 {
		t.Errorf("got %+v", got)
	}
	if want := []string{"POST /v1/vms/box/dial?port=1024"}; !slices.Equal(d.called(), want) {
		t.Errorf("the daemon was asked %v, want %v", d.called(), want)
	}
}

func TestExecOfVMsThatDoNotRun(t *testing.T) {
	d := newFakeDaemon(t)
	d.put(api.VM{ID: vmID, Name: "off", State: api.StateStopped})
	for name, want := range map[string]string{"off": "VM off is stopped", "nix": "there is no VM nix"} {
		if got := d.banger(strings.NewReader(""), "vm", "exec", name, "--", "true"); got.code != exitOwn || !strings.Contains(got.err, want) {
			t.Errorf("got %+v, want %q", got, want)
		}
	}
}

// A command that does not read must not keep signals from it.
func TestSignalPassesUnreadInput(t *testing.T) {
	d := newFakeDaemon(t)
	s := d.background(zeros{}, "vm", "run", "--rm", "--", "sh", "-c", "echo ready; exec sleep 60")
	s.out.await(t, "ready")
	s.app.signals.deliver(syscall.SIGINT)
	if code := s.wait(t); code != 130 {
		t.Errorf("exit code %d, %s", code, s.err)
	}
	if left := d.names(); len(left) != 0 {
		t.Errorf("VMs left: %v", left)
	}
}

func TestLostConnection(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	d.noFD = true // the stream then dies with the daemon
	r, w := io.Pipe()
	defer w.Close()
	s := d.background(r, "vm", "exec", "box", "--", "sh", "-c", "echo ready; exec sleep 60")
	s.out.await(t, "ready")
	d.guest.hangUp()
	if code := s.wait(t); code != exitOwn || !strings.Contains(s.err.String(), "connection to the guest was lost") {
		t.Errorf("exit code %d, %q", code, s.err)
	}
}
