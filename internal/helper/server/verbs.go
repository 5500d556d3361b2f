package server

import (
	"context"
	"net/http"
	"reflect"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/helper"
	"banger/internal/jsonhttp"
)

// verb is one thing the helper can be asked for. What people are told of it is in
// policy_page_test.go, without which no verb passes.
type verb struct {
	name    string
	in, out reflect.Type
	handler http.Handler
}

// verbs are all there are.
func (s *Server) verbs() []verb {
	byVM := func(r helper.VMRequest) string { return r.ID }
	return []verb{
		newVerb("vm.reserve", func(r helper.ReserveRequest) string { return r.ID }, s.reserve),
		newVerb("vm.release", byVM, s.release),
		newVerb("vm.attach", func(r helper.AttachRequest) string { return r.ID }, s.attach),
		newVerb("vm.grow", func(r helper.GrowRequest) string { return r.ID }, s.grow),
		newVerb("vm.fsck", func(r helper.FsckRequest) string { return r.ID }, s.fsck),
		newVerb("vm.launch", func(r helper.LaunchRequest) string { return r.ID }, s.launch),
		newVerb("vm.handover", byVM, s.handover),
		newVerb("vm.kill", func(r helper.KillRequest) string { return r.ID }, s.kill),
		newVerb("vm.cleanup", byVM, s.cleanup),
		newVerb("blob.put", nil, s.putBlob),
		newVerb("blob.gc", nil, s.gcBlobs),
		newVerb("bridge.ensure", nil, s.ensureBridge),
		newVerb("network.apply", nil, s.applyNetwork),
		newVerb("host.check", nil, s.hostCheck),
	}
}

// Handler returns the verbs: the whole of what the helper can be asked.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, v := range s.verbs() {
		mux.Handle("POST /v1/"+v.name, v.handler)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		jsonhttp.WriteError(w, api.NotFound("there is no such verb"))
	})
	return s.limit(mux)
}

// newVerb makes one verb. Where the request names a VM, its id is checked
// before anything else is looked at.
func newVerb[In, Out any](name string, id func(In) string, f func(context.Context, In) (Out, error)) verb {
	handler := jsonhttp.Handle(func(ctx context.Context, in In) (out Out, err error) {
		entry := entryOf(ctx)
		entry.verb, entry.op = name, jsonhttp.Operation(ctx)
		defer func() { entry.err = err }()
		if id != nil {
			if err := checkID(id(in)); err != nil {
				return out, err
			}
			entry.id = id(in)
		}
		if out, err = f(ctx, in); err == nil {
			err = fault.Point(ctx, "helper."+name)
		}
		return out, err
	})
	return verb{name: name, handler: handler, in: reflect.TypeFor[In](), out: reflect.TypeFor[Out]()}
}
