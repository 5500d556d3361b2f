package stream

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Host is the host's end of a stream. Read Stdout and Stderr to their ends,
// at the same time, then ask Wait.
type Host struct {
	// Stdin sends to the command. Closing it is the end of its input.
	Stdin io.WriteCloser
	// Stdout and Stderr end when the command has, or the connection.
	Stdout, Stderr io.Reader

	f        *framer
	in       *sender
	out, err *receiver
	done     chan struct{}
	exit     Exit  // final when done is closed
	failed   error // final when done is closed
}

// NewHost speaks frames on a connection that was answered with 101. Closing
// the connection, which is the caller's, ends everything.
func NewHost(r io.Reader, w io.Writer) *Host {
	f := newFramer(r, w)
	h := &Host{f: f, in: newSender(f, kindStdin), out: newReceiver(f, kindStdout), err: newReceiver(f, kindStderr), done: make(chan struct{})}
	h.Stdin, h.Stdout, h.Stderr = stdin{h.in}, h.out, h.err
	go h.serve()
	return h
}

// stdin is a sender with an end.
type stdin struct{ *sender }

func (s stdin) Close() error {
	s.end()
	return s.f.write(kindStdinEnd, nil)
}

// Signal sends the command a signal by its name without SIG.
func (h *Host) Signal(name string) error { return h.f.write(kindSignal, []byte(name)) }

// Resize tells the command's terminal its new size.
func (h *Host) Resize(s Size) error { return h.f.write(kindResize, s.append(nil)) }

func (s Size) append(b []byte) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, s.Rows), s.Columns)
}

// Wait returns how the command ended, or why nobody knows.
func (h *Host) Wait() (Exit, error) {
	<-h.done
	return h.exit, h.failed
}

func (h *Host) serve() {
	h.exit, h.failed = h.read()
	h.in.end()
	h.out.end()
	h.err.end()
	close(h.done)
}

func (h *Host) read() (Exit, error) {
	for {
		k, payload, err := h.f.read()
		if err != nil {
			return Exit{}, err
		}
		switch k {
		case kindStdout:
			err = h.out.put(payload)
		case kindStderr:
			err = h.err.put(payload)
		case kindCredit:
			err = readCredit(payload, h.in)
		case kindExit:
			return readExit(payload)
		default:
			err = fmt.Errorf("unknown frame of type %d", k)
		}
		if err != nil {
			return Exit{}, fmt.Errorf("cannot understand the guest: %w", err)
		}
	}
}

func readExit(payload []byte) (e Exit, err error) {
	if err = json.Unmarshal(payload, &e); err == nil && (e.Code < 0 || e.Code > 255) {
		err = errors.New("no such exit code")
	}
	if err != nil {
		return Exit{}, fmt.Errorf("cannot understand the guest: exit %.100q: %w", payload, err)
	}
	return e, nil
}
