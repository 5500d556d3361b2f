package vm

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/guest"
	"banger/internal/store"
)

// connected is a connection and its other end.
func connected(t *testing.T) (near, far *net.UnixConn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var d net.Dialer
	a, err := d.DialContext(t.Context(), "unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a.(*net.UnixConn), b.(*net.UnixConn)
}

func TestSpares(t *testing.T) {
	begun := time.Now()
	for name, tt := range map[string]struct {
		meanwhile func(s *spares, v *store.VM, far *net.UnixConn)
		port      uint32
		good      bool
	}{
		"used":            {func(*spares, *store.VM, *net.UnixConn) {}, guest.ControlPort, true},
		"of another port": {func(*spares, *store.VM, *net.UnixConn) {}, guest.SSHPort, false},
		"closed":          {func(_ *spares, _ *store.VM, far *net.UnixConn) { _ = far.Close() }, guest.ControlPort, false},
		"talkative":       {func(_ *spares, _ *store.VM, far *net.UnixConn) { _, _ = far.Write([]byte("HTTP/1.1 101")) }, guest.ControlPort, false},
		"of another boot": {func(_ *spares, v *store.VM, _ *net.UnixConn) { v.StartedAt = begun.Add(1) }, guest.ControlPort, false},
		"of an ended VM":  {func(s *spares, v *store.VM, _ *net.UnixConn) { s.forget(v.ID) }, guest.ControlPort, false},
		"bangerd ends":    {func(s *spares, _ *store.VM, _ *net.UnixConn) { s.close() }, guest.ControlPort, false},
	} {
		t.Run(name, func(t *testing.T) {
			var s spares
			v := &store.VM{ID: "0123456789ab", StartedAt: begun}
			near, far := connected(t)
			if !s.wanted(v, guest.ControlPort) || s.wanted(v, guest.SSHPort) {
				t.Error("wanted for the wrong port")
			}
			s.put(v, near)
			if s.wanted(v, guest.ControlPort) {
				t.Error("a second one is wanted")
			}
			tt.meanwhile(&s, v, far)
			got := s.take(v, tt.port)
			if (got == near) != tt.good {
				t.Fatalf("got %v", got)
			}
			if s.take(v, tt.port) != nil {
				t.Error("it is given out twice")
			}
		})
	}
}

// A second one, or one that comes too late, is closed.
func TestSparesCloseWhatTheyDoNotKeep(t *testing.T) {
	var s spares
	v := &store.VM{ID: "0123456789ab"}
	first, _ := connected(t)
	second, far := connected(t)
	s.put(v, first)
	s.put(v, second)
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("the second is open")
	}
	s.close()
	late, far := connected(t)
	s.put(v, late)
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("the late one is open")
	}
}

func TestAStopTakesTheSpareConnection(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v := &store.VM{ID: "0123456789ab", StartedAt: time.Now()}
	near, far := connected(t)
	m.spares.put(v, near)
	early := m.connectAhead(t.Context(), v)
	early.close() // nobody took it
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("it is still open")
	}
	near, far = connected(t)
	m.spares.put(v, near)
	go func() {
		r, err := http.ReadRequest(bufio.NewReader(far))
		if err == nil && r.URL.Path == "/v1/shutdown" {
			_, _ = io.WriteString(far, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"sound\":true}")
		}
	}()
	early = m.connectAhead(t.Context(), v)
	defer early.close()
	agent := early.agent(m.jailOf(v))
	defer agent.Close()
	if answer, err := askToEnd(t.Context(), agent, time.Minute); err != nil || !answer.Sound {
		t.Errorf("over the spare connection: %+v, %v", answer, err)
	}
	agent.Close()
	if _, err := agent.Health(t.Context()); err == nil { // there is no jail for a second one
		t.Error("a guest answered that is not there")
	}
}
