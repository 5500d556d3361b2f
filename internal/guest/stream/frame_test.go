package stream

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestFrames(t *testing.T) {
	var wire bytes.Buffer
	f := newFramer(&wire, &wire)
	payloads := [][]byte{nil, []byte("x"), bytes.Repeat([]byte{0xff}, maxPayload), []byte("\x00\n")}
	for i, p := range payloads {
		if err := f.write(kind(i), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.write(0, make([]byte, maxPayload+1)); err == nil {
		t.Error("a frame over the limit is written")
	}
	for i, want := range payloads {
		k, got, err := f.read()
		if err != nil || k != kind(i) || !bytes.Equal(got, want) {
			t.Errorf("frame %d: type %d, %d bytes, %v", i, k, len(got), err)
		}
	}
	if _, _, err := f.read(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestBrokenFrames(t *testing.T) {
	for wire, want := range map[string]string{
		"":                      "EOF",
		"\x01":                  "unexpected EOF",
		"\x01\x00\x00\x00":      "unexpected EOF",
		"\x01\x00\x00\x00\x02":  "unexpected EOF",
		"\x01\x00\x00\x00\x02x": "unexpected EOF",
		"\x01\x00\x01\x00\x01":  "frame of type 1 announces 65537 bytes",
		"\x02\xff\xff\xff\xff":  "frame of type 2 announces 4294967295 bytes",
	} {
		if _, _, err := newFramer(strings.NewReader(wire), nil).read(); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", wire, err, want)
		}
	}
}

// failing takes a few bytes, then fails once.
type failing struct{ calls int }

func (w *failing) Write(p []byte) (int, error) {
	if w.calls++; w.calls == 1 {
		return len(p) / 2, errors.New("no")
	}
	return len(p), nil
}

func TestNothingFollowsHalfAFrame(t *testing.T) {
	w := &failing{}
	f := newFramer(nil, w)
	for range 2 {
		if err := f.write(kindStdin, []byte("abc")); err == nil {
			t.Error("no error")
		}
	}
	if w.calls != 1 {
		t.Errorf("%d writes", w.calls)
	}
}

type deafControl struct{}

func (deafControl) Signal(string) {}
func (deafControl) Resize(Size)   {}

// FuzzEnds checks that whatever arrives, neither end panics, holds more than
// the windows, or goes on for ever.
func FuzzEnds(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x01a\x02\x00\x00\x00\x00\x03\x00\x00\x00\x04\x00\x18\x00\x50\x04\x00\x00\x00\x03INT"))
	f.Add([]byte("\x10\x00\x00\x00\x01a\x11\x00\x00\x00\x01b\x12\x00\x00\x00\x0a{\"code\":1}"))
	f.Add([]byte("\x20\x00\x00\x00\x05\x01\x00\x00\x00\x01"))
	f.Add([]byte("\x20\x00\x00\x00\x05\x10\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		g := NewGuest(bytes.NewReader(wire), io.Discard)
		_ = g.Serve(deafControl{})
		h := NewHost(bytes.NewReader(wire), io.Discard)
		exit, err := h.Wait()
		if err == nil && (exit.Code < 0 || exit.Code > 255) {
			t.Errorf("exit %+v", exit)
		}
		for _, r := range []*receiver{g.in, h.out, h.err} {
			if n := r.queue.Len(); n > window || n > len(wire) {
				t.Errorf("stream %d holds %d bytes of %d", r.kind, n, len(wire))
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Error(err)
			}
		}
		for _, s := range []*sender{g.out, g.err, h.in} {
			if s.credit != window {
				t.Errorf("stream %d has credit %d", s.kind, s.credit)
			}
		}
	})
}
