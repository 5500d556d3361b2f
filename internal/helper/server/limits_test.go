package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"banger/internal/jsonhttp"
)

func TestRequestsAreBounded(t *testing.T) {
	s, _ := testServer(t)
	send := func(method, body string) int {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, "/v1/vm.reserve", strings.NewReader(body)))
		return w.Code
	}
	long := `{"id":"` + strings.Repeat("0", shortBody) + `"}`
	if got := send("POST", `{"id":"`+strings.Repeat("0", maxBody)+`"}`); got != http.StatusRequestEntityTooLarge {
		t.Errorf("too long a request: %d", got)
	}
	if got := send("POST", long); got != http.StatusBadRequest {
		t.Errorf("a long request: %d", got)
	}
	if got := send("GET", ""); got/100 != 4 {
		t.Errorf("GET: %d", got)
	}
	for range maxLong {
		s.long <- struct{}{}
	}
	if got := send("POST", long); got != http.StatusServiceUnavailable {
		t.Errorf("one long request too many: %d", got)
	}
	s.active.Store(maxActive)
	if got := send("POST", `{"id":"`+idA+`"}`); got != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d", got)
	}
	s.active.Store(0)
	if got := send("POST", `{"id":"`+idA+`"}`); got != http.StatusOK || s.active.Load() != 0 {
		t.Errorf("then: %d, %d active", got, s.active.Load())
	}
}

// served has s answer on a socket.
func served(t *testing.T, s *Server) (dial func() net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv, l := s.httpServer(l)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-ended
	})
	return func() net.Conn {
		c, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
}

// status sends what is given and returns the answer's status; 0 means that the
// connection was closed without one.
func status(t *testing.T, c net.Conn, send string) int {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(3 * bodyTime)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, send) // it may be refused in the middle
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func request(verb, body string) string {
	return fmt.Sprintf("POST /v1/%s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", verb, len(body), body)
}

// Who is refused at the door is in the log too.
func TestRefusedAtTheDoorIsLogged(t *testing.T) {
	s, _ := testServer(t)
	log := make(chan string, 4)
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	slog.SetDefault(slog.New(slog.NewTextHandler(lines(log), nil)))
	browser := "POST /v1/vm.kill HTTP/1.1\r\nHost: h\r\nOrigin: http://x\r\nContent-Length: 2\r\n\r\n{}"
	if got := status(t, served(t, s)(), browser); got != http.StatusForbidden {
		t.Errorf("status %d", got)
	}
	select {
	case line := <-log:
		if !strings.Contains(line, "msg=refused") || !strings.Contains(line, fmt.Sprintf("uid=%d", os.Getuid())) {
			t.Errorf("logged %q", line)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was logged")
	}
}

// Who is refused at the door, or for a body that is none, waits for his turn as others
// do: the log would be full of him.
func TestRefusalsArePaced(t *testing.T) {
	s, _ := testServer(t)
	s.pace = rate.NewLimiter(rate.Every(time.Hour), 1)
	srv, _ := s.httpServer(nil)
	for i, want := range []int{http.StatusForbidden, http.StatusInternalServerError} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		w := httptest.NewRecorder()
		srv.Handler.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/vm.kill", nil))
		cancel()
		if w.Code != want {
			t.Errorf("request %d: status %d, %s", i, w.Code, w.Body)
		}
	}
}

// lines passes what is written on.
type lines chan<- string

func (l lines) Write(p []byte) (int, error) { l <- string(p); return len(p), nil }

func TestSlowRequestsTakeNobodysTurn(t *testing.T) {
	s, _ := testServer(t)
	dial := served(t, s)
	half := request("vm.reserve", `{"id":"`+idA+`"}`)
	half = half[:len(half)-5]
	for range maxActive + 10 {
		if _, err := io.WriteString(dial(), half); err != nil {
			t.Fatal(err)
		}
	}
	if got := status(t, dial(), request("vm.reserve", `{"id":"`+idB+`"}`)); got != http.StatusOK {
		t.Errorf("beside slow requests: %d", got)
	}
}

func TestWhatIsTooLongIsRefusedUnread(t *testing.T) {
	s, _ := testServer(t)
	dial := served(t, s)
	for name, c := range map[string]struct {
		send string
		want int
	}{
		"body":             {fmt.Sprintf("POST /v1/vm.reserve HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", 1<<50), http.StatusRequestEntityTooLarge},
		"body of a length": {"POST /v1/vm.reserve HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", http.StatusLengthRequired},
		"header":           {"POST /v1/vm.reserve HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("x", 64<<10), http.StatusRequestHeaderFieldsTooLarge},
		"not HTTP":         {"\x00\x01\x02\r\n\r\n", http.StatusBadRequest},
		"two lengths":      {"POST /v1/vm.reserve HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", http.StatusBadRequest},
		"negative length":  {"POST /v1/vm.reserve HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", http.StatusBadRequest},
		"from a browser":   {"POST /v1/vm.reserve HTTP/1.1\r\nHost: h\r\nOrigin: x\r\nContent-Length: 2\r\n\r\n", http.StatusForbidden},
	} {
		if got := status(t, dial(), c.send); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestHalfRequestsAreCut(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the limits of time")
	}
	t.Parallel()
	s, _ := testServer(t)
	dial := served(t, s)
	begun := time.Now()
	header, body := dial(), dial()
	// What is refused at once is not read without end either.
	refused := map[string]net.Conn{}
	for name, more := range map[string]string{"browser": "Origin: x\r\n", "no verb": "", "chunks": "Transfer-Encoding: chunked\r\nX-"} {
		refused[name] = dial()
		_, _ = io.WriteString(refused[name], "POST /v1/vm.none HTTP/1.1\r\nHost: h\r\n"+more+"Content-Length: 200000\r\n\r\n{")
	}
	if _, err := io.WriteString(header, "POST /v1/vm.res"); err != nil {
		t.Fatal(err)
	}
	half := request("vm.reserve", `{"id":"`+idA+`"}`)
	if got := status(t, body, half[:len(half)-5]); got != http.StatusBadRequest {
		t.Errorf("half a body: %d", got)
	}
	_ = status(t, header, "") // closed, with a word or without
	for name, c := range refused {
		for end := time.Now().Add(bodyTime); ; <-time.After(50 * time.Millisecond) {
			if _, err := io.WriteString(c, "x"); err != nil {
				break
			}
			if time.Now().After(end) {
				t.Errorf("%s: still read", name)
				break
			}
		}
	}
	if d := time.Since(begun); d < bodyTime/2 || d > 2*bodyTime {
		t.Errorf("cut after %s", d)
	}
}

func TestConnectionsAreBoundedByUser(t *testing.T) {
	s, _ := testServer(t)
	dial := served(t, s)
	held := make([]net.Conn, maxConns)
	for i := range held {
		held[i] = dial()
	}
	if got := status(t, dial(), request("vm.reserve", `{"id":"`+idA+`"}`)); got != 0 {
		t.Errorf("one connection too many: %d", got)
	}
	if got := status(t, held[0], request("vm.reserve", `{"id":"`+idA+`"}`)); got != http.StatusOK {
		t.Errorf("one of those that are held: %d", got)
	}
	// The server has closed that one; it knows of it a moment later than we do.
	client := jsonhttp.NewHTTPClient(func(context.Context) (net.Conn, error) { return dial(), nil })
	ctx, cancel := context.WithTimeout(t.Context(), bodyTime)
	defer cancel()
	for ctx.Err() == nil && jsonhttp.Call(ctx, client, http.MethodPost, "http://h/v1/vm.reserve", map[string]string{"id": idA}, nil) != nil {
	}
	if ctx.Err() != nil {
		t.Error("a place that became free is not given again")
	}
}
