package server

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/jsonhttp"
)

func TestEveryRequestIsLogged(t *testing.T) {
	s, _ := testServer(t)
	var log bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	for _, c := range []struct {
		verb, body, op string
		want           []string
	}{
		{"vm.reserve", `{"id":"` + idA + `"}`, "op-1", []string{"msg=done", "verb=vm.reserve", "op=op-1", "id=" + idA, " ms=", "status=200"}},
		{"vm.reserve", `{"id":"../x"}`, "op-2", []string{"msg=refused", "verb=vm.reserve", "op=op-2", "code=bad_request"}},
		{"vm.reserve", `{"id":`, "op-3", []string{"msg=refused", "op=op-3", "status=400"}},
		{"vm.handover", `{"id":"` + idB + `"}`, "", []string{"msg=refused", "verb=vm.handover", "id=" + idB, "code=not_found"}},
		{"vm.exec", `{}`, "op-4", []string{"msg=refused", "status=404", "op=op-4"}},
		{"vm.kill", `{"id":"` + strings.Repeat("0", maxBody) + `"}`, "op-5", []string{"msg=refused", "status=413"}},
		{"vm.exec", `{}`, "op\n" + strings.Repeat("x", 500), []string{"msg=refused", `op="op\nxxx`}},
	} {
		log.Reset()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/"+c.verb, strings.NewReader(c.body))
		r.Header[jsonhttp.OperationHeader] = []string{c.op}
		logged(s.Handler()).ServeHTTP(httptest.NewRecorder(), r)
		line := log.String()
		if strings.Count(line, "\n") != 1 || len(line) > 500 {
			t.Errorf("%s %s: %q", c.verb, c.op, line)
		}
		for _, part := range c.want {
			if !strings.Contains(line, part) {
				t.Errorf("%s %s: no %s in %q", c.verb, c.op, part, line)
			}
		}
	}
}

func TestRequestsOfStrangersAndPanicsAreLogged(t *testing.T) {
	var log bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	for want, h := range map[string]http.Handler{
		`msg=refused verb="(none`: jsonhttp.OnlyUIDs(http.NotFoundHandler(), 1000),
		`msg=failed verb="(none`:  http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oh") }),
	} {
		log.Reset()
		func() {
			defer func() { _ = recover() }() // net/http does so
			logged(h).ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/vm.kill", nil))
		}()
		if line := log.String(); strings.Count(line, "\n") != 1 || !strings.Contains(line, want) {
			t.Errorf("%q is not %s", line, want)
		}
	}
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace()
		begun := time.Now()
		for range burst {
			if err := p.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(begun); d != 0 {
			t.Errorf("a burst took %s", d)
		}
		for range 256 {
			if err := p.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(begun); d < 990*time.Millisecond || d > 1010*time.Millisecond {
			t.Errorf("what comes after the burst took %s", d)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for range 10_000 {
			if err := p.Wait(gone); err == nil {
				t.Fatal("who left was served")
			}
		}
		begun = time.Now()
		if err := p.Wait(t.Context()); err != nil || time.Since(begun) > 2*time.Second/perSecond {
			t.Errorf("behind those who left: %s, %v", time.Since(begun), err)
		}
		time.Sleep(time.Hour)
		begun = time.Now()
		for range burst {
			if err := p.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(begun); d != 0 {
			t.Errorf("a burst after a rest took %s", d)
		}
	})
}
