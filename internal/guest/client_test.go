package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"banger/api"
)

// firecracker answers one CONNECT on the far end of a connection.
func firecracker(t *testing.T, answer string) (near net.Conn, asked <-chan string) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { _ = near.Close() })
	got := make(chan string, 1)
	go func() {
		defer far.Close()
		buf := make([]byte, 64)
		n, _ := far.Read(buf)
		got <- string(buf[:n])
		_, _ = io.WriteString(far, answer)
	}()
	return near, got
}

func TestConnect(t *testing.T) {
	conn, asked := firecracker(t, "OK 1073741824\nfirst payload")
	if err := Connect(t.Context(), conn, 22); err != nil {
		t.Fatal(err)
	}
	if got := <-asked; got != "CONNECT 22\n" {
		t.Errorf("Firecracker was asked %q", got)
	}
	rest, err := io.ReadAll(conn)
	if err != nil || string(rest) != "first payload" {
		t.Errorf("after the handshake there is %q, %v", rest, err)
	}
}

func TestConnectFailures(t *testing.T) {
	for name, tt := range map[string]struct {
		answer  string
		refused bool
	}{
		"closed at once":     {"", true},
		"closed in the line": {"OK 1", true},
		"something else":     {"HTTP/1.1 400\n", false},
		"no number":          {"OK \n", false},
		"negative":           {"OK -1\n", false},
		"endless":            {"OK " + strings.Repeat("1", 100), false},
	} {
		t.Run(name, func(t *testing.T) {
			conn, _ := firecracker(t, tt.answer)
			err := Connect(t.Context(), conn, 22)
			if err == nil {
				t.Fatal("connected")
			}
			if errors.Is(err, ErrRefused) != tt.refused {
				t.Errorf("refused should be %v, error is: %v", tt.refused, err)
			}
		})
	}
}

func TestConnectEndsWithItsContext(t *testing.T) {
	near, far := net.Pipe() // nobody answers, as with a paused VM
	defer near.Close()
	go func() { _, _ = io.Copy(io.Discard, far) }()
	defer far.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := Connect(ctx, near, 22); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is: %v", err)
	}
}

func agentServing(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(l) }()
	c := NewClient(func(ctx context.Context, port uint32) (net.Conn, error) {
		if port != ControlPort {
			t.Errorf("client dials port %d", port)
		}
		var d net.Dialer
		return d.DialContext(ctx, "unix", l.Addr().String())
	})
	t.Cleanup(func() { c.Close(); _ = srv.Close() })
	return c
}

func TestAnswersOfTheAgentAreMadePrintable(t *testing.T) {
	c := agentServing(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"phase":"ready","version":"v1\u001b[2J","kernel":"6.1\n","init":"/sbin/init\u202e"}`)
	})
	h, err := c.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := Health{Phase: PhaseReady, Version: "v1[2J", Kernel: "6.1", Init: "/sbin/init"}
	if h != want {
		t.Errorf("got %+v, want %+v", h, want)
	}
}

func TestProblemsOfTheAgentAreMadePrintable(t *testing.T) {
	c := agentServing(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"detail":"cannot\u001b do","code":"conflict"}`)
	})
	_, err := c.SetIdentity(t.Context(), validIdentity())
	p, ok := errors.AsType[*api.Problem](err)
	if !ok || p.Status != http.StatusConflict || p.Code != api.CodeConflict || p.Detail != "cannot do" {
		t.Errorf("error is %#v", err)
	}
}

func TestEndOfAGuest(t *testing.T) {
	for answer, want := range map[string]string{
		`{"action":"poweroff"}`:     ActionPowerOff,
		`{"action":"reboot"}`:       ActionReboot,
		`{"action":"explode"}`:      "",
		`{"action":"reboot\u001b"}`: "",
		`{}`:                        "",
		`[]`:                        "",
	} {
		c := agentServing(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || r.URL.Path != "/v1/end" {
				t.Errorf("agent is asked %s %s", r.Method, r.URL)
			}
			_, _ = io.WriteString(w, answer)
		})
		i, err := c.End(t.Context())
		if i.Action != want || (err == nil) != (want != "") {
			t.Errorf("%s: %+v, %v", answer, i, err)
		}
	}
}

func TestEndIsWaitedForAsLongAsTheCallerWants(t *testing.T) {
	gone := make(chan bool)
	c := agentServing(t, func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.End(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	<-gone // the agent sees that nobody waits any more
}

func TestPortsOfAGuest(t *testing.T) {
	many := "[" + strings.Repeat(`{"protocol":"tcp","address":"::","port":80},`, MaxPorts+5) + `{"protocol":"tcp","address":"::","port":81}]`
	for name, tt := range map[string]struct {
		answer string
		ports  int
	}{
		"none":         {`[]`, 0},
		"one":          {`[{"protocol":"udp","address":"127.0.0.1","port":53,"process":"dns\u001b[2Jmasq"}]`, 1},
		"too many":     {many, MaxPorts},
		"no address":   {`[{"protocol":"tcp","address":"x","port":80}]`, -1},
		"port 0":       {`[{"protocol":"tcp","address":"::","port":0}]`, -1},
		"port 70000":   {`[{"protocol":"tcp","address":"::","port":70000}]`, -1},
		"sctp":         {`[{"protocol":"sctp","address":"::","port":1}]`, -1},
		"not a list":   {`{"protocol":"tcp"}`, -1},
		"without end":  {"[" + strings.Repeat(" ", 5<<20) + "]", -1},
		"address zone": {`[{"protocol":"tcp","address":"fe80::1%\u001b","port":1}]`, -1},
	} {
		t.Run(name, func(t *testing.T) {
			c := agentServing(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, tt.answer) })
			ports, err := c.Ports(t.Context())
			if (err == nil) != (tt.ports >= 0) || len(ports) != max(tt.ports, 0) {
				t.Errorf("%d ports, %v", len(ports), err)
			}
			if name == "one" && ports[0] != (Port{Protocol: "udp", Address: "127.0.0.1", Port: 53, Process: "dns[2Jmasq"}) {
				t.Errorf("port is %+v", ports)
			}
		})
	}
}
