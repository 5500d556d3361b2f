package server

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/jsonhttp"
)

// What one caller may cost.
const (
	maxConns  = 256       // connections at a time, of each uid
	maxActive = 64        // requests at a time
	maxBody   = 512 << 10 // bytes; network.apply has a line for each guest
	bodyTime  = 10 * time.Second
	// Nearly all requests are short. Those that are not arrive a few at a time,
	// so that what has arrived of all of them is little.
	shortBody = 16 << 10
	maxLong   = 8
	// Starts of VMs are some ten requests each. Who asks more often waits.
	burst     = 512                   // requests at once
	perSecond = 256                   // after that
	maxWord   = 64                    // of what a caller chose and the log repeats
	noVerb    = "(none of the verbs)" // in the log
)

// entry is what the log says of one request; the verb fills it in.
type entry struct {
	verb, op, id string
	err          error
}

type entryKey struct{}

func entryOf(ctx context.Context) *entry {
	if e, ok := ctx.Value(entryKey{}).(*entry); ok {
		return e
	}
	return &entry{}
}

// logged writes a line for every request, also for those that no verb saw or in
// which one panicked: done, failed (by the host's fault or ours) or refused (by the
// caller's).
func logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun := time.Now()
		e := &entry{verb: noVerb, op: r.Header.Get(jsonhttp.OperationHeader)}
		answer := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		answered := false
		defer func() {
			if !answered { // it goes on to panic
				answer.status = http.StatusInternalServerError
			}
			e.write(r.Context(), answer.status, time.Since(begun))
		}()
		next.ServeHTTP(answer, r.WithContext(context.WithValue(r.Context(), entryKey{}, e)))
		answered = true
	})
}

func (e *entry) write(ctx context.Context, status int, took time.Duration) {
	attrs := []any{"verb", e.verb, "op", printable(e.op)}
	if e.id != "" {
		attrs = append(attrs, "id", e.id)
	}
	attrs = append(attrs, "ms", float64(took.Microseconds())/1000, "status", status)
	if uid, ok := jsonhttp.PeerOf(ctx); ok {
		attrs = append(attrs, "uid", uid)
	}
	if e.err != nil {
		attrs = append(attrs, "code", jsonhttp.AsProblem(e.err).Code, "err", e.err)
	}
	switch {
	case status < 300:
		slog.Info("done", attrs...)
	case status < 500:
		slog.Warn("refused", attrs...)
	default:
		slog.Warn("failed", attrs...)
	}
}

// statusWriter remembers how a request was answered.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets deadlines be set.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// printable cuts what the caller chose to something a log line can hold.
func printable(word string) string {
	return strings.ToValidUTF8(word[:min(len(word), maxWord)], "?")
}

// limit bounds how many requests there are and how long each is, so that one
// caller's mistakes cost little. Who sends slowly, or half a request, takes nobody's turn: a request
// is under way when all of it is here.
func (s *Server) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := s.readBody(w, r)
		if err != nil {
			jsonhttp.WriteError(w, err)
			return
		}
		defer func() {
			s.last.Store(time.Now().UnixNano())
			s.active.Add(-1)
		}()
		if s.active.Add(1) > maxActive && !byRoot(r) {
			jsonhttp.WriteError(w, api.Problemf(http.StatusServiceUnavailable, helper.CodeBusy, "%d requests are under way", maxActive))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// byRoot reports whether root asks, whom the owner's requests do not lock out.
func byRoot(r *http.Request) bool {
	uid, ok := jsonhttp.PeerOf(r.Context())
	return ok && uid == 0
}

// paced makes who asks too often wait, whatever becomes of the request: refusals, too,
// leave a line in a log that is not without end.
func (s *Server) paced(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !byRoot(r) {
			if err := s.pace.Wait(r.Context()); err != nil {
				jsonhttp.WriteError(w, err)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// readBody takes a request's body, of which the length has to be known: what is
// too long is refused unread.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	switch {
	case r.ContentLength < 0:
		return nil, api.Problemf(http.StatusLengthRequired, api.CodeBadRequest, "request does not say how long it is")
	case r.ContentLength > maxBody:
		return nil, api.Problemf(http.StatusRequestEntityTooLarge, api.CodeBadRequest, "request is larger than %d bytes", maxBody)
	case r.ContentLength > shortBody:
		select {
		case s.long <- struct{}{}:
			defer func() { <-s.long }()
		default:
			return nil, api.Problemf(http.StatusServiceUnavailable, helper.CodeBusy, "%d long requests are arriving", maxLong)
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, api.BadRequest("cannot read request: %v", err)
	}
	// From here on the connection is read only to notice that the caller left.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	return body, nil
}

// arriveInTime bounds how long a request's body may take, also one that is not
// wanted: the server reads on for a while before it closes a connection on
// somebody who still sends.
func arriveInTime(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Before a read does, this cannot fail.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
		next.ServeHTTP(w, r)
	})
}
