package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"banger/internal/guest"
	"banger/internal/guest/stream"
)

const (
	// copyBuffer is a pipe's capacity.
	copyBuffer = 64 << 10
	// impatience is how soon a second INT, or TERM, must follow to end the waiting.
	impatience = 2 * time.Second
	// bounce is how soon one that follows is still the same: timeout(1) sends it to
	// the process and then to its group.
	bounce = 50 * time.Millisecond
)

// command is what a session runs and how.
type command struct {
	exec guest.Exec // its TTY is decided by tty
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
	app    *App
	host   *stream.Host
	raw    bool                         // our terminal's keys are bytes now
	last   map[syscall.Signal]time.Time // when INT and TERM came
	giveUp chan syscall.Signal
	broken chan struct{} // stdout or stderr is gone
	once   sync.Once

	resizing sync.Mutex
}

// runSession runs cmd over conn, a new connection to a guest's control port,
// with the app's streams and returns its exit code: the guest's own, or
// 128 + n when signal n ended it. The caller closes conn, which ends what is
// left of the session.
func (a *App) runSession(ctx context.Context, conn net.Conn, cmd command) (int, error) {
	exit, err := a.session(ctx, conn, cmd)
	if err == nil && exit.Error != "" { // the terminal is itself again
		a.talk.fail(errors.New(exit.Error))
	}
	return exit.Code, err
}

func (a *App) session(ctx context.Context, conn net.Conn, cmd command) (stream.Exit, error) {
	s := &session{app: a, last: map[syscall.Signal]time.Time{}, giveUp: make(chan syscall.Signal, 1), broken: make(chan struct{})}
	more := []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2}
	if cmd.tty == ttyForce || cmd.tty == ttyAuto && isTerminal(a.In) && isTerminal(a.Out) {
		cmd.exec.TTY = s.describeTTY()
		more = append(more, syscall.SIGWINCH)
	}
	known, err := readyInput(a.In)
	if err != nil {
		return stream.Exit{}, err
	}
	if s.host, err = guest.StartExecWith(ctx, conn, cmd.exec, known); err != nil {
		return stream.Exit{}, lost(err)
	}
	if cmd.exec.TTY != nil && isTerminal(a.In) {
		restore, err := makeRaw(a.In.(*os.File))
		if err != nil {
			return stream.Exit{}, err
		}
		defer restore()
		s.raw = true
	}
	if !s.raw { // a raw terminal sends its keys as bytes, not as signals
		more = append(more, syscall.SIGQUIT)
	}
	defer a.signals.divert(s.signal, more...)()
	if !known.Ended {
		go s.sendInput()
	}
	var output sync.WaitGroup
	output.Go(func() { s.receive(a.Out, s.host.Stdout) })
	output.Go(func() { s.receive(a.Err, s.host.Stderr) })
	drained := make(chan struct{})
	go func() { output.Wait(); close(drained) }()

	select {
	case <-drained:
	case sig := <-s.giveUp:
		return stream.Exit{Code: 128 + int(sig)}, nil
	case <-s.broken:
		return stream.Exit{Code: 128 + int(syscall.SIGPIPE)}, nil
	case <-ctx.Done():
		return stream.Exit{}, context.Cause(ctx)
	}
	exit, err := s.host.Wait()
	return exit, lost(err)
}

// readyInput reads what can be read without waiting: the beginning of a file, or
// the nothing of /dev/null. All else may have another reader too, or none yet.
func readyInput(in io.Reader) (guest.Input, error) {
	f, ok := in.(*os.File)
	if !ok {
		return guest.Input{}, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return guest.Input{Ended: errors.Is(err, unix.EBADF)}, nil // stdin is closed
	}
	null := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
	switch {
	case null:
		return guest.Input{Ended: true}, nil
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return guest.Input{}, nil
	}
	buf := make([]byte, guest.MaxInput)
	n, err := io.ReadFull(f, buf)
	ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if err != nil && !ended {
		return guest.Input{}, fmt.Errorf("cannot read stdin: %w", err)
	}
	return guest.Input{Data: buf[:n], Ended: ended}, nil
}

// describeTTY asks for a terminal like ours.
func (s *session) describeTTY() *guest.TTY {
	tty := &guest.TTY{Term: s.app.Getenv("TERM"), Rows: 24, Cols: 80}
	if tty.Term == "" {
		tty.Term = "dumb"
	}
	if size, ok := s.size(); ok {
		tty.Rows, tty.Cols = size.Rows, size.Columns
	}
	return tty
}

// size is that of our terminal, if we have one.
func (s *session) size() (stream.Size, bool) {
	for _, f := range []any{s.app.Out, s.app.In} {
		if isTerminal(f) {
			w, h, err := term.GetSize(int(f.(*os.File).Fd()))
			return stream.Size{Rows: uint16(h), Columns: uint16(w)}, err == nil
		}
	}
	return stream.Size{}, false
}

func makeRaw(in *os.File) (restore func(), err error) {
	state, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, fmt.Errorf("cannot make the terminal raw: %w", err)
	}
	return func() { _ = term.Restore(int(in.Fd()), state) }, nil
}

// sendInput copies stdin until its end. It may outlive the session, blocked in
// a read nobody can interrupt; the process ends soon after.
func (s *session) sendInput() {
	copyStream(s.host.Stdin, s.app.In)
	_ = s.host.Stdin.Close() // the command may have ended long ago
}

// receive copies one of the command's outputs. When nobody reads ours any
// more, the command gets what a local one would: SIGPIPE.
func (s *session) receive(to io.Writer, from io.Reader) {
	w := &writeErr{w: to}
	copyStream(w, from)
	if w.err != nil {
		s.once.Do(func() {
			s.sendSignal(syscall.SIGPIPE) // before the owner closes the connection
			close(s.broken)
		})
	}
}

// copyStream hides WriteTo and ReadFrom, which would bring buffers of their own.
func copyStream(to io.Writer, from io.Reader) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, copyBuffer))
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

// signal is called with each signal that comes while the session is open.
func (s *session) signal(sig syscall.Signal) {
	// Sending may block on a stuck guest; the next signal must still be heard.
	if sig == syscall.SIGWINCH {
		go s.resize()
		return
	}
	go s.sendSignal(sig)
	if sig != syscall.SIGINT && sig != syscall.SIGTERM {
		return
	}
	now := time.Now()
	since := now.Sub(s.last[sig])
	if since < bounce {
		return
	}
	if since < impatience {
		select {
		case s.giveUp <- sig:
		default:
		}
	}
	s.last[sig] = now
}

func (s *session) sendSignal(sig syscall.Signal) {
	// A failure means the session is over, which its owner is about to see.
	_ = s.host.Signal(strings.TrimPrefix(unix.SignalName(sig), "SIG"))
}

func (s *session) resize() {
	s.resizing.Lock() // the last to send is the last to have looked
	defer s.resizing.Unlock()
	if size, ok := s.size(); ok {
		_ = s.host.Resize(size) // as above
	}
}

// lost names what the ends of a dead connection mean.
func lost(err error) error {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, net.ErrClosed} {
		if errors.Is(err, end) {
			return errors.New("the connection to the guest was lost")
		}
	}
	return err
}
