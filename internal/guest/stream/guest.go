package stream

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Guest is the guest's end of a stream.
type Guest struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	f        *framer
	in       *receiver
	out, err *sender
}

// Control is what the host does to a command besides feeding it. Neither may
// block: everything else waits for them.
type Control interface {
	Signal(name string)
	Resize(Size)
}

// NewGuest speaks frames on a connection that was answered with 101.
func NewGuest(r io.Reader, w io.Writer) *Guest {
	f := newFramer(r, w)
	g := &Guest{f: f, in: newReceiver(f, kindStdin), out: newSender(f, kindStdout), err: newSender(f, kindStderr)}
	g.Stdin, g.Stdout, g.Stderr = g.in, g.out, g.err
	return g
}

// Serve receives until the host closes the connection, which is no error, or
// something is wrong with it. Then the streams are over.
func (g *Guest) Serve(c Control) error {
	defer g.in.end()
	defer g.out.end()
	defer g.err.end()
	for {
		k, payload, err := g.f.read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = g.handle(c, k, payload)
		}
		if err != nil {
			return err
		}
	}
}

func (g *Guest) handle(c Control, k kind, payload []byte) error {
	switch k {
	case kindStdin:
		return g.in.put(payload)
	case kindStdinEnd:
		if len(payload) != 0 {
			return badLength(k, payload)
		}
		g.in.end()
	case kindCredit:
		return readCredit(payload, g.out, g.err)
	case kindSignal:
		c.Signal(string(payload))
	case kindResize:
		if len(payload) != 4 {
			return badLength(k, payload)
		}
		c.Resize(Size{binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])})
	default:
		return fmt.Errorf("unknown frame of type %d", k)
	}
	return nil
}

// maxError keeps an exit within a frame, however JSON has to escape it.
const maxError = 8 << 10

// Exit is the last that is sent, after all output.
func (g *Guest) Exit(e Exit) error {
	e.Error = e.Error[:min(len(e.Error), maxError)]
	payload, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("cannot encode the end of a command: %w", err)
	}
	return g.f.write(kindExit, payload)
}
