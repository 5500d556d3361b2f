package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// errOver is what a stream's ends get when the connection is over.
var errOver = errors.New("the stream is over")

// sender sends one of the three data streams, as far as its credit goes.
type sender struct {
	f    *framer
	kind kind

	mu      sync.Mutex
	changed sync.Cond
	credit  int  // guarded by mu
	over    bool // guarded by mu
}

func newSender(f *framer, k kind) *sender {
	s := &sender{f: f, kind: k, credit: window}
	s.changed.L = &s.mu
	return s
}

// Write returns when all of p is on its way, which may take as long as the
// other side likes.
func (s *sender) Write(p []byte) (sent int, err error) {
	for sent < len(p) {
		n, err := s.take(min(len(p)-sent, maxPayload))
		if err != nil {
			return sent, err
		}
		if err := s.f.write(s.kind, p[sent:sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// take waits for credit and returns how much of it, up to most, is spent.
func (s *sender) take(most int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.credit == 0 && !s.over {
		s.changed.Wait()
	}
	if s.over {
		return 0, errOver
	}
	n := min(most, s.credit)
	s.credit -= n
	return n, nil
}

func (s *sender) give(n uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == 0 || n > uint32(window-s.credit) {
		return fmt.Errorf("credit of %d bytes for stream %d is more than was used", n, s.kind)
	}
	s.credit += int(n)
	s.changed.Broadcast()
	return nil
}

func (s *sender) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.changed.Broadcast()
}

// receiver holds what came of one data stream until somebody reads it.
type receiver struct {
	f    *framer
	kind kind

	mu      sync.Mutex
	changed sync.Cond
	queue   bytes.Buffer // guarded by mu; at most window bytes
	room    int          // guarded by mu; credit the sender has left
	taken   int          // guarded by mu; read, and not given as credit yet
	over    bool         // guarded by mu
}

func newReceiver(f *framer, k kind) *receiver {
	r := &receiver{f: f, kind: k, room: window}
	r.changed.L = &r.mu
	return r
}

// put never waits.
func (r *receiver) put(p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.over:
		return fmt.Errorf("stream %d goes on after its end", r.kind)
	case len(p) == 0 || len(p) > r.room:
		return fmt.Errorf("%d bytes of stream %d where up to %d are allowed", len(p), r.kind, r.room)
	}
	r.room -= len(p)
	r.queue.Write(p)
	r.changed.Broadcast()
	return nil
}

// Read waits for data. The end is io.EOF, also when the connection broke: how
// it ended is told elsewhere.
func (r *receiver) Read(p []byte) (int, error) {
	n, credit := r.take(p)
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	if credit > 0 {
		// If it fails, the connection is over, and so is this stream soon.
		_ = r.f.writeCredit(r.kind, credit)
	}
	return n, nil
}

// take fills p. Credit is given in large pieces: a frame for each key pressed
// would double the traffic.
func (r *receiver) take(p []byte) (n, credit int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.queue.Len() == 0 && !r.over && len(p) > 0 {
		r.changed.Wait()
	}
	n, _ = r.queue.Read(p) // it fails only with io.EOF, which n tells as well
	r.taken += n
	if r.over || r.taken < window/4 {
		return n, 0
	}
	credit, r.taken = r.taken, 0
	r.room += credit
	return n, credit
}

func (r *receiver) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	r.changed.Broadcast()
}

// readCredit hands a credit frame to the sender it is for.
func readCredit(payload []byte, senders ...*sender) error {
	if len(payload) != 5 {
		return badLength(kindCredit, payload)
	}
	for _, s := range senders {
		if s.kind == kind(payload[0]) {
			return s.give(binary.BigEndian.Uint32(payload[1:]))
		}
	}
	return fmt.Errorf("credit for stream %d, which is not sent here", payload[0])
}

func badLength(k kind, payload []byte) error {
	return fmt.Errorf("frame of type %d has %d bytes", k, len(payload))
}
