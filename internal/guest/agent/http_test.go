package agent

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/jsonhttp"
)

type sum struct{ A, B int }

// controlPort serves routes and returns a client of the other side's kind.
func controlPort(t *testing.T, routes []route) (*http.Client, string) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { _ = serveHTTP(l, routes, testLogger(t)) }()
	c := jsonhttp.NewHTTPClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", l.Addr().String())
	})
	t.Cleanup(c.CloseIdleConnections)
	return c, l.Addr().String()
}

func addRoutes(then func()) []route {
	return []route{
		jsonRoute("POST", "/add", func(in sum) (int, error) { return in.A + in.B, nil }, then),
		jsonRoute("GET", "/fail", func(struct{}) (int, error) { return 0, errors.New("broken") }, nil),
		jsonRoute("GET", "/gone", func(struct{}) (int, error) { return 0, api.Conflict("too late") }, nil),
	}
}

func TestControlPortAnswersJSONHTTP(t *testing.T) {
	after := make(chan bool, 2)
	c, _ := controlPort(t, addRoutes(func() { after <- true }))
	for range 2 { // on one connection
		var out int
		if err := jsonhttp.Call(t.Context(), c, "POST", "http://agent/add", sum{1, 2}, &out); err != nil || out != 3 {
			t.Fatalf("got %d, %v", out, err)
		}
		<-after
	}
	for path, want := range map[string]api.Problem{
		"GET /fail":    {Status: 500, Code: api.CodeInternal, Detail: "broken"},
		"GET /gone":    {Status: 409, Code: api.CodeConflict, Detail: "too late"},
		"GET /nothing": {Status: 404, Code: api.CodeNotFound, Detail: "no /nothing in this agent"},
		"PUT /add":     {Status: 405, Code: api.CodeBadRequest, Detail: "/add does not take PUT"},
	} {
		method, path, _ := strings.Cut(path, " ")
		err := jsonhttp.Call(t.Context(), c, method, "http://agent"+path, nil, nil)
		if p, ok := errors.AsType[*api.Problem](err); !ok || *p != want {
			t.Errorf("%s: %#v, want %#v", path, err, want)
		}
	}
	err := jsonhttp.Call(t.Context(), c, "POST", "http://agent/add", map[string]int{"C": 1}, nil)
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Status != 400 {
		t.Errorf("an unknown field: %v", err)
	}
}

func TestControlPortRefusesWhatItDoesNotUnderstand(t *testing.T) {
	_, addr := controlPort(t, addRoutes(nil))
	for name, tt := range map[string]struct{ send, status string }{
		"not HTTP":          {"hello\n\n", "400"},
		"HTTP/1.0":          {"GET /gone HTTP/1.0\r\n\r\n", "400"},
		"chunked body":      {"POST /add HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "411"},
		"two lengths":       {"POST /add HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 2\r\n\r\n{}", "400"},
		"negative length":   {"POST /add HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400"},
		"huge body":         {"POST /add HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", "413"},
		"endless head":      {"GET /gone HTTP/1.1\r\nX: " + strings.Repeat("x", maxHead) + "\r\n\r\n", "431"},
		"many lines":        {"GET /gone HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", maxHead/6+1) + "\r\n", "431"},
		"malformed field":   {"GET /gone HTTP/1.1\r\nnonsense\r\n\r\n", "400"},
		"two values":        {"POST /add HTTP/1.1\r\nContent-Length: 4\r\nConnection: close\r\n\r\n{}{}", "400"},
		"last request, bad": {"GET /gone HTTP/1.1\r\nConnection: close\r\n\r\n", "409"},
	} {
		t.Run(name, func(t *testing.T) {
			var d net.Dialer
			conn, err := d.DialContext(t.Context(), "unix", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			go func() { _, _ = io.WriteString(conn, tt.send) }() // it may be cut off
			answer, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil || !strings.HasPrefix(answer, "HTTP/1.1 "+tt.status+" ") {
				t.Errorf("answer is %q, %v", answer, err)
			}
		})
	}
}

// FuzzRequest checks that no request makes the agent panic or hold more than
// its limits.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("PUT /v1/identity HTTP/1.1\r\nHost: agent\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("GET / HTTP/1.1\n\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		req, err := readRequest(bufio.NewReader(strings.NewReader(string(raw))))
		if err == nil && (req.method == "" || req.path == "" || len(req.body) > maxBody || len(req.body) > len(raw)) {
			t.Errorf("request %+v was read", req)
		}
	})
}
