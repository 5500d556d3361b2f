package stream

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// framer reads and writes frames. One goroutine may read; any number write.
type framer struct {
	r    *bufio.Reader
	used int // length of the frame that was read last, still in r

	mu     sync.Mutex
	w      io.Writer
	out    []byte // guarded by mu
	broken error  // guarded by mu; an earlier write failed, perhaps halfway
}

func newFramer(r io.Reader, w io.Writer) *framer {
	return &framer{r: bufio.NewReaderSize(r, headSize+maxPayload), w: w}
}

// read returns the next frame. The payload is good until the next call. The
// memory it needs is that of r, whatever a frame's head says. io.EOF is the
// end of the connection between two frames.
func (f *framer) read() (kind, []byte, error) {
	used := f.used
	f.used = 0
	if _, err := f.r.Discard(used); err != nil {
		return 0, nil, err
	}
	head, err := f.r.Peek(headSize)
	if err != nil {
		return 0, nil, cutOff(len(head) > 0, err)
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxPayload {
		return 0, nil, fmt.Errorf("frame of type %d announces %d bytes", head[0], n)
	}
	frame, err := f.r.Peek(headSize + int(n))
	if err != nil {
		return 0, nil, cutOff(true, err)
	}
	f.used = len(frame)
	return kind(frame[0]), frame[headSize:], nil
}

func cutOff(within bool, err error) error {
	if within && err == io.EOF { //nolint:errorlint // Peek returns it bare, and only that is meant
		return io.ErrUnexpectedEOF
	}
	return err
}

// write sends one frame in one write. After a failure all writes fail: what
// the other side has of the frame is unknown.
func (f *framer) write(k kind, payload []byte) error {
	if len(payload) > maxPayload {
		return fmt.Errorf("frame of type %d with %d bytes is too long", k, len(payload))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return f.broken
	}
	f.out = append(f.out[:0], byte(k))
	f.out = binary.BigEndian.AppendUint32(f.out, uint32(len(payload)))
	f.out = append(f.out, payload...)
	_, f.broken = f.w.Write(f.out)
	return f.broken
}

func (f *framer) writeCredit(k kind, n int) error {
	return f.write(kindCredit, binary.BigEndian.AppendUint32([]byte{byte(k)}, uint32(n)))
}
