package stream

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// heard tells what the host did to a command.
type heard chan any

func (h heard) Signal(name string) { h <- name }
func (h heard) Resize(s Size)      { h <- s }

// pair is a host and a guest on the two ends of an unbuffered pipe.
func pair(t *testing.T) (h *Host, g *Guest, control heard, hangUp func(), served chan error) {
	t.Helper()
	near, far := net.Pipe()
	control, served = make(heard, 16), make(chan error, 1)
	h, g = NewHost(near, near), NewGuest(far, far)
	go func() { served <- g.Serve(control) }()
	t.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	return h, g, control, func() { _ = near.Close() }, served
}

func TestBothWays(t *testing.T) {
	h, g, _, _, _ := pair(t)
	data := make([]byte, 20<<20)
	_, _ = rand.Read(data)
	go func() { // as cat
		_, err := io.Copy(g.Stdout, g.Stdin)
		_, _ = io.WriteString(g.Stderr, "done")
		_ = g.Exit(Exit{Code: 3, Error: strings.Repeat("\x00", 1<<20)})
		if err != nil {
			t.Error(err)
		}
	}()
	go func() {
		_, _ = h.Stdin.Write(data)
		_ = h.Stdin.Close()
	}()
	var out, errs bytes.Buffer
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(&out, h.Stdout) })
	both.Go(func() { _, _ = io.Copy(&errs, h.Stderr) })
	both.Wait()
	exit, err := h.Wait()
	if err != nil || exit.Code != 3 || len(exit.Error) != maxError {
		t.Errorf("exit %d, error of %d bytes, %v", exit.Code, len(exit.Error), err)
	}
	if !bytes.Equal(out.Bytes(), data) || errs.String() != "done" {
		t.Errorf("%d bytes of %d came back, and %q", out.Len(), len(data), errs.String())
	}
}

// What is not read, on either side, holds up nothing else.
func TestUnreadStreamsBlockNothing(t *testing.T) {
	h, g, control, _, _ := pair(t)
	blocked := make(chan int, 2)
	for _, w := range []io.Writer{h.Stdin, g.Stdout} {
		go func() {
			n, err := w.Write(make([]byte, window+1))
			if !errors.Is(err, errOver) {
				t.Errorf("written, %v", err)
			}
			blocked <- n
		}()
	}
	if err := h.Signal("INT"); err != nil {
		t.Fatal(err)
	}
	if err := h.Resize(Size{24, 80}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []any{"INT", Size{24, 80}} {
		if got := <-control; !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if _, err := io.WriteString(g.Stderr, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(h.Stderr, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// All credit is used, so each has got exactly that far.
	for _, s := range []*sender{h.in, g.out} {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // there is no event for it
			s.mu.Lock()
			credit := s.credit
			s.mu.Unlock()
			if credit == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("stream %d has %d bytes of credit left", s.kind, credit)
			}
		}
	}
	if err := g.Exit(Exit{Code: 130, Signal: "INT"}); err != nil {
		t.Fatal(err)
	}
	if exit, err := h.Wait(); err != nil || exit != (Exit{Code: 130, Signal: "INT"}) {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if n, err := io.Copy(io.Discard, h.Stdout); n != window || err != nil {
		t.Errorf("%d bytes were kept, %v", n, err)
	}
	g.out.end()
	for range 2 {
		if n := <-blocked; n != window {
			t.Errorf("%d bytes were sent, want %d", n, window)
		}
	}
}

func TestEndOfTheConnection(t *testing.T) {
	h, g, _, hangUp, served := pair(t)
	if _, err := io.WriteString(g.Stdout, "last words"); err != nil {
		t.Fatal(err)
	}
	for h.out.held() == 0 { // there is no event for it
		time.Sleep(time.Millisecond)
	}
	hangUp()
	if err := <-served; err != nil {
		t.Errorf("the guest sees %v", err)
	}
	if n, err := g.Stdin.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("stdin: %d, %v", n, err)
	}
	if _, err := g.Stdout.Write([]byte("x")); err == nil {
		t.Error("stdout goes on")
	}
	if out, err := io.ReadAll(h.Stdout); string(out) != "last words" || err != nil {
		t.Errorf("stdout: %q, %v", out, err)
	}
	if _, err := h.Wait(); err == nil {
		t.Error("the host has an exit")
	}
}

func (r *receiver) held() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.queue.Len()
}

func TestBrokenRules(t *testing.T) {
	frame := func(k kind, payload string) string {
		var b bytes.Buffer
		if err := newFramer(nil, &b).write(k, []byte(payload)); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	full := strings.Repeat(frame(kindStdin, strings.Repeat("x", maxPayload)), window/maxPayload)
	for name, wire := range map[string]string{
		"more than credit": full + frame(kindStdin, "x"), "no data": frame(kindStdin, ""),
		"after the end": frame(kindStdinEnd, "") + frame(kindStdin, "x"), "data in the end": frame(kindStdinEnd, "x"),
		"half a size": frame(kindResize, "\x00\x18"), "of the other side": frame(kindStdout, "x"), "unknown": frame(99, ""),
		"credit nobody used": frame(kindCredit, "\x10\x00\x00\x00\x01"), "credit of 0": frame(kindCredit, "\x10\x00\x00\x00\x00"),
		"credit for stdin": frame(kindCredit, "\x01\x00\x00\x00\x01"), "half a credit": frame(kindCredit, "\x10"),
	} {
		if err := NewGuest(strings.NewReader(wire), io.Discard).Serve(deafControl{}); err == nil {
			t.Errorf("%s: a guest goes on", name)
		}
	}
	if err := NewGuest(strings.NewReader(full), io.Discard).Serve(deafControl{}); err != nil {
		t.Errorf("a full window: %v", err)
	}
	for name, wire := range map[string]string{
		"end without exit": frame(kindStdout, "x"), "of the other side": frame(kindStdin, "x"), "no JSON": frame(kindExit, "x"),
		"no code": frame(kindExit, `{"code":256}`), "negative": frame(kindExit, `{"code":-1}`), "credit nobody used": frame(kindCredit, "\x01\x00\x00\x00\x01"),
	} {
		if exit, err := NewHost(strings.NewReader(wire), io.Discard).Wait(); err == nil {
			t.Errorf("%s: a host takes it for %+v", name, exit)
		}
	}
}

// Credit must come back in pieces large enough and soon enough.
func TestCreditReturns(t *testing.T) {
	var wire bytes.Buffer
	r := newReceiver(newFramer(nil, &wire), kindStdin)
	for range 10 * window / 1000 {
		if err := r.put(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(make([]byte, 2000)); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
	}
	if frames := wire.Len() / (headSize + 5); frames < 30 || frames > 40 {
		t.Errorf("%d frames of credit for 10 windows", frames)
	}
}
