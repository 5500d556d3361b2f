package agent

import (
	"bufio"
	"net"
	"testing"
)

func TestSessionsAreCounted(t *testing.T) {
	var s sessions
	inside := make(chan bool)
	r := s.counted(route{handle: func([]byte) (any, error) {
		return takeover(func(net.Conn, *bufio.Reader) { inside <- true; <-inside }), nil
	}})
	answer, err := r.handle(nil)
	if err != nil || s.open.Load() != 0 {
		t.Fatalf("before it runs: %d, %v", s.open.Load(), err)
	}
	done := make(chan bool)
	go func() { answer.(takeover)(nil, nil); close(done) }()
	<-inside
	if n := s.open.Load(); n != 1 {
		t.Errorf("%d while it runs", n)
	}
	inside <- true
	<-done
	if n := s.open.Load(); n != 0 {
		t.Errorf("%d afterwards", n)
	}

	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	counting := s.listener(l)
	defer counting.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := counting.Accept()
	if err != nil || s.open.Load() != 1 {
		t.Fatalf("with a client: %d, %v", s.open.Load(), err)
	}
	for range 2 {
		_ = conn.Close()
	}
	if n := s.open.Load(); n != 0 {
		t.Errorf("%d without it", n)
	}
}
