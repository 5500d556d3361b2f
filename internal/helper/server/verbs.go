package server

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/helper"
	"banger/internal/jsonhttp"
)

const (
	maxActive = 64        // requests at a time
	maxBody   = 512 << 10 // bytes; network.apply has a line for each guest
	bodyTime  = 10 * time.Second
)

// Handler returns the verbs: the whole of what the helper can be asked.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	byVM := func(r helper.VMRequest) string { return r.ID }
	verb(mux, "vm.reserve", func(r helper.ReserveRequest) string { return r.ID }, s.reserve)
	verb(mux, "vm.release", byVM, s.release)
	verb(mux, "vm.attach", func(r helper.AttachRequest) string { return r.ID }, s.attach)
	verb(mux, "vm.grow", func(r helper.GrowRequest) string { return r.ID }, s.grow)
	verb(mux, "vm.fsck", func(r helper.FsckRequest) string { return r.ID }, s.fsck)
	verb(mux, "vm.launch", func(r helper.LaunchRequest) string { return r.ID }, s.launch)
	verb(mux, "vm.handover", byVM, s.handover)
	verb(mux, "vm.kill", byVM, s.kill)
	verb(mux, "vm.cleanup", byVM, s.cleanup)
	verb(mux, "blob.put", nil, s.putBlob)
	verb(mux, "blob.gc", nil, s.gcBlobs)
	verb(mux, "bridge.ensure", nil, s.ensureBridge)
	verb(mux, "network.apply", nil, s.applyNetwork)
	verb(mux, "host.check", nil, s.hostCheck)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		jsonhttp.WriteError(w, api.NotFound("there is no such verb"))
	})
	return s.limit(mux)
}

func (s *Server) reserve(_ context.Context, r helper.ReserveRequest) (helper.Slot, error) {
	return s.slots.reserve(r.ID)
}

// verb registers one verb. Where the request names a VM, its id is checked
// before anything else is looked at.
func verb[In, Out any](mux *http.ServeMux, name string, id func(In) string, f func(context.Context, In) (Out, error)) {
	mux.Handle("POST /v1/"+name, jsonhttp.Handle(func(ctx context.Context, in In) (out Out, err error) {
		start := time.Now()
		attrs := []any{"verb", name, "op", printable(jsonhttp.Operation(ctx))}
		if id != nil {
			if err := checkID(id(in)); err != nil {
				slog.Warn("refused", append(attrs, "err", err)...)
				return out, err
			}
			attrs = append(attrs, "id", id(in))
		}
		if out, err = f(ctx, in); err == nil {
			err = fault.Point(ctx, "helper."+name)
		}
		attrs = append(attrs, "ms", float64(time.Since(start).Microseconds())/1000)
		if err != nil {
			slog.Warn("failed", append(attrs, "code", jsonhttp.AsProblem(err).Code, "err", err)...)
			return out, err
		}
		slog.Info("done", attrs...)
		return out, nil
	}))
}

// printable cuts what the caller chose to something a log line can hold.
func printable(op string) string {
	if len(op) > 64 {
		op = op[:64]
	}
	return op
}

// limit bounds how many requests there are, how long each is, and how long it
// may take to arrive, so that one caller's mistakes cost little.
func (s *Server) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			s.last.Store(time.Now().UnixNano())
			s.active.Add(-1)
		}()
		if s.active.Add(1) > maxActive {
			jsonhttp.WriteError(w, api.Problemf(http.StatusServiceUnavailable, helper.CodeBusy, "%d requests are under way", maxActive))
			return
		}
		body, err := readBody(w, r)
		if err != nil {
			jsonhttp.WriteError(w, err)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	control := http.NewResponseController(w)
	// Tests without a connection have no deadline to set. On a connection
	// this cannot fail before a read does.
	_ = control.SetReadDeadline(time.Now().Add(bodyTime))
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, api.BadRequest("cannot read request: %v", err)
	}
	if len(body) > maxBody {
		return nil, api.Problemf(http.StatusRequestEntityTooLarge, api.CodeBadRequest, "request is larger than %d bytes", maxBody)
	}
	// From here on the connection is read only to notice that the caller left.
	_ = control.SetReadDeadline(time.Time{})
	return body, nil
}
