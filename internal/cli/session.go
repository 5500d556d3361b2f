package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"banger/internal/guest"
)

const (
	// copyBuffer feeds whole SSH windows; 32 KiB would cost a wake-up each.
	copyBuffer = 256 << 10
	// maxCommand keeps the request within one SSH packet.
	maxCommand = 200 << 10
	// maxLogged bounds the copy of the command line for the guest's log.
	maxLogged = 1 << 10
	// impatience is how soon a second INT must follow to end the waiting.
	impatience = 2 * time.Second
)

// command is what a session runs and how.
type command struct {
	exec guest.Exec
	env  []string // K=V
	tty  ttyMode
}

// ttyMode says whether the command gets a terminal.
type ttyMode int

const (
	ttyAuto ttyMode = iota // if we have one on stdin and stdout
	ttyForce
	ttyNever
)

// session is one command in a guest and its streams.
type session struct {
	app     *App
	channel ssh.Channel
	restore func() // gives the terminal its mode back; nil unless it is raw
	lastINT time.Time
	giveUp  chan syscall.Signal
	broken  chan struct{} // stdout or stderr is gone
	once    sync.Once
}

// runSession runs cmd on conn with the app's streams and returns its exit
// code: the guest's own, or 128 + n when signal n ended it. The caller closes
// conn, which ends what is left of the session; a polite close of the channel
// could block on a guest that is stuck.
func (a *App) runSession(ctx context.Context, conn *guestConn, cmd command) (int, error) {
	channel, requests, err := conn.OpenChannel("session", nil)
	if err != nil {
		return 0, fmt.Errorf("cannot open a session in the guest: %w", err)
	}
	s := &session{app: a, channel: channel, giveUp: make(chan syscall.Signal, 1), broken: make(chan struct{})}
	exit := make(chan exitStatus, 1)
	go func() { exit <- readExit(requests) }()

	pty := cmd.tty == ttyForce || cmd.tty == ttyAuto && isTerminal(a.In) && isTerminal(a.Out)
	var more []os.Signal
	if pty {
		if err := s.requestPTY(); err != nil {
			return 0, err
		}
		if s.restore != nil {
			defer s.restore()
		}
		more = append(more, syscall.SIGWINCH)
	}
	if s.restore == nil { // a raw terminal sends its keys as bytes, not as signals
		more = append(more, syscall.SIGQUIT)
	}
	if err := s.start(cmd); err != nil {
		return 0, err
	}
	defer a.signals.divert(s.signal, append(more, syscall.SIGUSR1, syscall.SIGUSR2)...)()
	go s.sendInput()
	var output sync.WaitGroup
	output.Go(func() { s.receive(a.Out, channel) })
	output.Go(func() { s.receive(a.Err, channel.Stderr()) })
	drained := make(chan struct{})
	go func() { output.Wait(); close(drained) }()

	select {
	case <-drained:
	case sig := <-s.giveUp:
		return 128 + int(sig), nil
	case <-s.broken:
		return 128 + int(syscall.SIGPIPE), nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	status := <-exit
	return status.code, status.err
}

// start sends the request to run cmd and waits for the guest's yes.
func (s *session) start(cmd command) error {
	for _, kv := range cmd.env {
		k, v, _ := strings.Cut(kv, "=")
		if err := s.setenv(k, v); err != nil {
			return err
		}
	}
	direct, err := json.Marshal(cmd.exec)
	if err != nil {
		return fmt.Errorf("cannot encode the command: %w", err)
	}
	if len(direct) > maxCommand {
		return fmt.Errorf("cannot start the command: its %d bytes are more than %d", len(direct), maxCommand)
	}
	if err := s.setenv(guest.ExecEnv, string(direct)); err != nil {
		return err
	}
	kind, payload := "shell", []byte(nil)
	if len(cmd.exec.Argv) > 0 {
		words := shellWords(cmd.exec.Argv) // only for the guest's log
		kind, payload = "exec", ssh.Marshal(struct{ Command string }{words[:min(len(words), maxLogged)]})
	}
	ok, err := s.channel.SendRequest(kind, true, payload)
	switch {
	case err != nil:
		return fmt.Errorf("cannot start the command: %w", lost(err))
	case !ok:
		return errors.New("cannot start the command: the guest refuses")
	}
	return nil
}

// setenv does not ask for an answer: that would cost a round trip each.
func (s *session) setenv(name, value string) error {
	_, err := s.channel.SendRequest("env", false, ssh.Marshal(struct{ Name, Value string }{name, value}))
	if err != nil {
		return fmt.Errorf("cannot pass %s to the guest: %w", name, lost(err))
	}
	return nil
}

// requestPTY asks for a terminal like ours and, if stdin is one, makes it raw.
func (s *session) requestPTY() error {
	columns, rows := 80, 24
	if f := s.terminal(); f != nil {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil {
			columns, rows = w, h
		}
	}
	name := s.app.Getenv("TERM")
	if name == "" {
		name = "dumb"
	}
	ok, err := s.channel.SendRequest("pty-req", true, ssh.Marshal(struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        string
	}{name, uint32(columns), uint32(rows), 0, 0, "\x00"}))
	if err != nil {
		return fmt.Errorf("cannot ask for a terminal: %w", lost(err))
	}
	if !ok {
		return errors.New("cannot ask for a terminal: the guest refuses")
	}
	if !isTerminal(s.app.In) {
		return nil
	}
	in := s.app.In.(*os.File)
	state, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return fmt.Errorf("cannot make the terminal raw: %w", err)
	}
	s.restore = func() { _ = term.Restore(int(in.Fd()), state) }
	return nil
}

// terminal is the one whose size counts.
func (s *session) terminal() *os.File {
	for _, stream := range []any{s.app.Out, s.app.In} {
		if isTerminal(stream) {
			return stream.(*os.File)
		}
	}
	return nil
}

// sendInput copies stdin until its end. It may outlive the session, blocked in
// a read nobody can interrupt; the process ends soon after.
func (s *session) sendInput() {
	buf := make([]byte, copyBuffer)
	// Hide WriteTo and ReadFrom: they would bring small buffers of their own.
	_, _ = io.CopyBuffer(struct{ io.Writer }{s.channel}, struct{ io.Reader }{s.app.In}, buf)
	_ = s.channel.CloseWrite() // the command may have ended long ago
}

// receive copies one of the command's outputs. When nobody reads ours any
// more, the command gets what a local one would: SIGPIPE.
func (s *session) receive(to io.Writer, from io.Reader) {
	buf := make([]byte, copyBuffer)
	w := &writeErr{w: to}
	_, _ = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{from}, buf)
	if w.err != nil {
		s.once.Do(func() {
			s.sendSignal(syscall.SIGPIPE) // before the owner closes the connection
			close(s.broken)
		})
	}
}

// writeErr tells a failed write from a failed read.
type writeErr struct {
	w   io.Writer
	err error
}

func (w *writeErr) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err != nil {
		w.err = err
	}
	return n, err
}

// exitStatus is how a command ended.
type exitStatus struct {
	code int
	err  error
}

// readExit waits for the guest to say how the command ended.
func readExit(requests <-chan *ssh.Request) exitStatus {
	status := exitStatus{err: errors.New("the connection to the guest was lost before the command ended")}
	for r := range requests {
		switch r.Type {
		case "exit-status":
			var m struct{ Status uint32 }
			if err := ssh.Unmarshal(r.Payload, &m); err != nil {
				status.err = fmt.Errorf("cannot read the exit status: %w", err)
				break
			}
			status = exitStatus{code: int(m.Status & 0xff)}
		case "exit-signal":
			var m struct {
				Signal     string
				CoreDumped bool
				Message    string
				Language   string
			}
			if err := ssh.Unmarshal(r.Payload, &m); err != nil {
				status.err = fmt.Errorf("cannot read the exit signal: %w", err)
				break
			}
			status = exitStatus{code: signalCode(m.Signal)}
		}
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
	return status
}

// signalCode is 128 + the number of an SSH signal name, 255 for one unknown.
func signalCode(name string) int {
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return 128 + int(n)
	}
	return 255
}

// signal is called with each signal that comes while the session is open.
func (s *session) signal(sig syscall.Signal) {
	if sig == syscall.SIGWINCH {
		s.resize()
		return
	}
	go s.sendSignal(sig) // may block on a stuck guest; the next signal must still be heard
	if sig != syscall.SIGINT {
		return
	}
	now := time.Now()
	if now.Sub(s.lastINT) < impatience {
		select {
		case s.giveUp <- sig:
		default:
		}
	}
	s.lastINT = now
}

func (s *session) sendSignal(sig syscall.Signal) {
	name := strings.TrimPrefix(unix.SignalName(sig), "SIG")
	// A failure means the session is over, which its owner is about to see.
	_, _ = s.channel.SendRequest("signal", false, ssh.Marshal(struct{ Name string }{name}))
}

func (s *session) resize() {
	f := s.terminal()
	if f == nil {
		return
	}
	if w, h, err := term.GetSize(int(f.Fd())); err == nil {
		_, _ = s.channel.SendRequest("window-change", false, ssh.Marshal(struct{ Columns, Rows, Width, Height uint32 }{uint32(w), uint32(h), 0, 0}))
	}
}

// lost replaces the bare EOF of a dead connection.
func lost(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the connection to the guest was lost")
	}
	return err
}

// shellWords shows argv as a person could type it, for logs.
func shellWords(argv []string) string {
	var b bytes.Buffer
	for i, arg := range argv {
		if i > 0 {
			b.WriteByte(' ')
		}
		if arg != "" && strings.Trim(arg, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-") == "" {
			b.WriteString(arg)
			continue
		}
		b.WriteString("'" + strings.ReplaceAll(arg, "'", `'\''`) + "'")
	}
	return b.String()
}
