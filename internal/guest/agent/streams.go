package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Sizes and times of copying.
const (
	copySize = 64 << 10 // a pipe's capacity: one read empties it
	// quiet is how long output is awaited after the command has ended, while
	// somebody still holds its stdout or stderr: a background process, which
	// may do so for ever, or the tee of a process substitution, which has
	// something to say yet. Each output restarts it.
	quiet = time.Second
)

// buffers are for copying. A command has three of them; making them anew for
// each would have short commands wait for the collector.
var buffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// pipe is one of a command's standard streams.
type pipe struct {
	ours   *os.File // non-blocking, so that it has deadlines
	theirs int      // blocking, as programs expect; -1 when handed over
}

// newPipe makes a pipe whose far end is for reading (stdin) or writing.
func newPipe(name string, theyRead bool) (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	ours, theirs := fds[0], fds[1]
	if theyRead {
		ours, theirs = theirs, ours
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make a pipe: %w", err), unix.Close(ours), unix.Close(theirs))
	}
	return &pipe{os.NewFile(uintptr(ours), name), theirs}, nil
}

// handOver closes our copy of the command's end.
func (p *pipe) handOver() {
	if p.theirs >= 0 {
		_ = unix.Close(p.theirs)
		p.theirs = -1
	}
}

func (p *pipe) close() {
	p.handOver()
	_ = p.ours.Close()
}

// copyOutput copies what a command writes until it cannot write any more:
// the stream ends, or it is quiet after exited. A client that is gone ends it
// too. Then r is closed.
func copyOutput(w io.Writer, r *os.File, exited <-chan struct{}) {
	defer r.Close()
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-exited:
			_ = r.SetReadDeadline(time.Now().Add(quiet)) // wakes a pending read in time
		case <-finished:
		}
	}()
	buf := buffers.Get().(*[copySize]byte)
	defer buffers.Put(buf)
	for {
		n, err := r.Read(buf[:])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil { // EOF, EIO of a terminal, or quiet
			return
		}
		select {
		case <-exited:
			_ = r.SetReadDeadline(time.Now().Add(quiet))
		default:
		}
	}
}

// copyInput copies the client's input until it ends. A command that does not
// read it, or not all, is normal: the rest is dropped, so that the client is
// not held up.
func copyInput(w io.Writer, r io.Reader) {
	buf := buffers.Get().(*[copySize]byte)
	defer buffers.Put(buf)
	var broken error
	for {
		n, err := r.Read(buf[:])
		if n > 0 && broken == nil {
			_, broken = w.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}
