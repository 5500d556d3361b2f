package guest

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/guest/stream"
)

// answering is a connection whose other end answers one request with text.
func answering(t *testing.T, text string) net.Conn {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { _ = near.Close() })
	go func() {
		defer far.Close()
		_, _ = far.Read(make([]byte, 4096))
		_, _ = io.WriteString(far, text)
		if text != "" {
			_, _ = far.Read(make([]byte, 1)) // until the caller closes
		}
	}()
	return near
}

const switching = "HTTP/1.1 101 -\r\nConnection: Upgrade\r\nUpgrade: banger-exec\r\n\r\n"

func TestStartExecKeepsEarlyFrames(t *testing.T) {
	s, err := StartExec(t.Context(), answering(t, switching+"\x10\x00\x00\x00\x02hi\x12\x00\x00\x00\x0a{\"code\":3}"), Exec{Argv: []string{"echo"}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(s.Stdout)
	if exit, waitErr := s.Wait(); err != nil || waitErr != nil || string(out) != "hi" || exit.Code != 3 {
		t.Errorf("got %q, %v, %+v, %v", out, err, exit, waitErr)
	}
}

// outcome is how a command ends, if it starts at all.
func outcome(t *testing.T, conn net.Conn) (stream.Exit, error) {
	t.Helper()
	s, err := StartExec(t.Context(), conn, Exec{})
	if err != nil {
		return stream.Exit{}, err
	}
	return s.Wait()
}

func TestStartExecFailures(t *testing.T) {
	for name, tt := range map[string]struct{ answer, text, hint string }{
		"an older agent":  {"HTTP/1.1 404 -\r\nContent-Length: 48\r\n\r\n" + `{"detail":"no /v1/exec in this agent","code":""}`, "no /v1/exec", "older banger"},
		"a problem":       {"HTTP/1.1 409 -\r\nContent-Length: 36\r\n\r\n" + `{"detail":"not\u001b yet","code":""}`, "not yet", ""},
		"success":         {"HTTP/1.1 200 -\r\nContent-Length: 0\r\n\r\n", "answers 200", ""},
		"nothing":         {"", "cannot start the command", ""},
		"no HTTP":         {"SSH-2.0-x\r\n", "cannot start the command", ""},
		"an endless head": {"HTTP/1.1 101 -\r\nX: " + strings.Repeat("x", maxUpgrade), "cannot start the command", ""},
	} {
		_, err := outcome(t, answering(t, tt.answer))
		if err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		p, _ := errors.AsType[*api.Problem](err)
		if tt.hint != "" && (p == nil || !strings.Contains(p.Hint, tt.hint)) {
			t.Errorf("%s: %#v", name, err)
		}
	}
}

func TestStartExecRefusesWhatTheAgentWould(t *testing.T) {
	_, err := StartExec(t.Context(), answering(t, switching), Exec{Argv: []string{strings.Repeat("x", MaxRequest)}})
	if err == nil || !strings.Contains(err.Error(), "are more than") {
		t.Errorf("error is: %v", err)
	}
}

// What is known of the input leaves in the request's packet.
func TestStartExecSendsKnownInput(t *testing.T) {
	near, far := net.Pipe() // its reads end where writes do
	defer near.Close()
	first := make(chan string, 1)
	go func() {
		b := make([]byte, 4096)
		n, _ := far.Read(b)
		first <- string(b[:n])
		_, _ = io.WriteString(far, switching+"\x12\x00\x00\x00\x0a{\"code\":3}")
	}()
	s, err := StartExecWith(t.Context(), near, Exec{Argv: []string{"cat"}}, Input{Data: []byte("abc"), Ended: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := <-first, "\x01\x00\x00\x00\x03abc\x02\x00\x00\x00\x00"; !strings.HasSuffix(got, want) {
		t.Errorf("the first packet is %q", got)
	}
	if exit, err := s.Wait(); err != nil || exit.Code != 3 {
		t.Errorf("got %+v, %v", exit, err)
	}
	if _, err := s.Stdin.Write([]byte("more")); err == nil {
		t.Error("input goes on after its end")
	}
}
