package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/artifact"
	"banger/internal/store"
	"banger/internal/vm"
)

// bareDaemon has an image, a kernel, no VM, and a helper that is never asked.
func bareDaemon(t *testing.T) *Daemon {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir+"/banger.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := errors.Join(s.InsertImage(t.Context(), &store.Image{ID: "i", Name: "debian"}), s.InsertKernel(t.Context(), &store.Kernel{ID: "k", Name: "host"})); err != nil {
		t.Fatal(err)
	}
	d := &Daemon{log: quiet(), store: s, ops: newOperations(quiet())}
	d.ending, d.end = context.WithCancelCause(t.Context())
	d.leases = newLeases(d.abandoned)
	if d.images, err = artifact.OpenImages(t.Context(), s, dir+"/images", 1<<30, 0, quiet()); err != nil {
		t.Fatal(err)
	}
	if d.vms, err = vm.NewManager(t.Context(), vm.Options{Store: s, Log: quiet(), StateDir: dir, ExitDir: dir, RunDir: dir,
		DefaultImage: "debian", DefaultKernel: "host", DefaultVCPU: 1, DefaultMemory: 128}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.leases.close()
		d.ops.close()
		_ = d.vms.Close()
	})
	return d
}

func bare(t *testing.T) http.Handler { return bareDaemon(t).routes() }

func TestEveryPathParameterReachesItsHandler(t *testing.T) {
	h := bare(t)
	for _, route := range []string{
		"GET /v1/vms/absent", "POST /v1/vms/absent/start", "POST /v1/vms/absent/stop", "POST /v1/vms/absent/stop?timeout=3",
		"POST /v1/vms/absent/restart?timeout=3", "POST /v1/vms/absent/pause", "POST /v1/vms/absent/resume", "POST /v1/vms/absent/lease",
		"GET /v1/vms/absent/stats", "GET /v1/vms/absent/stats?watch=true&interval=2", "GET /v1/vms/absent/health", "GET /v1/vms/absent/ports",
		"GET /v1/vms/absent/logs?follow=true&lines=3&since=2026-01-02T03:04:05Z", "GET /v1/events?vm=absent",
		"POST /v1/vms/absent/kill", "DELETE /v1/vms/absent", "DELETE /v1/vms/absent?force=true",
		"DELETE /v1/images/absent", "GET /v1/operations/absent", "DELETE /v1/operations/absent",
		"GET /v1/operations/absent/events", "PUT /v1/operations/absent/input",
	} {
		method, path, _ := strings.Cut(route, " ")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		if w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), `\"absent\"`) {
			t.Errorf("%s: %d %s", route, w.Code, w.Body)
		}
	}
}

func TestBadRequestsAreProblems(t *testing.T) {
	h := bare(t)
	for _, tc := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/v1/nothing", "", 404},
		{"POST", "/v1/vms", `{"vcpu":"many"}`, 422},
		{"POST", "/v1/vms", `{"colour":"red"}`, 422},
		{"POST", "/v1/vms", `{`, 400},
		{"POST", "/v1/vms/a/stop?timeout=-1", "", 422},
		{"PATCH", "/v1/vms/a", `{"vcpu":"many"}`, 422},
		{"PATCH", "/v1/vms/a", `{"state":"running"}`, 422},
		{"PATCH", "/v1/vms/a", `{"restart":"maybe"}`, 422},
		{"PATCH", "/v1/vms/a", `{"vcpu":1}`, 404},
		{"POST", "/v1/vms", `{"name":"x","restart":"maybe"}`, 422},
		{"POST", "/v1/vms/prune", `{"older_than_seconds":-1}`, 422},
		{"GET", "/v1/vms/a/stats?interval=0", "", 422},
		{"GET", "/v1/vms/a/logs?since=yesterday", "", 422},
		{"GET", "/v1/vms/a/logs?lines=0", "", 422},
		{"GET", "/v1/events?since=x", "", 400},
		{"GET", "/v1/events?since=-1", "", 400},
		{"GET", "/v1/events?since=1.5", "", 400},
		{"POST", "/v1/vms/a/dial?port=x", "", 400},
		{"POST", "/v1/vms/a/dial?port=22", "", 426},
	} {
		r := httptest.NewRequestWithContext(t.Context(), tc.method, tc.path, strings.NewReader(tc.body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != tc.status || !strings.Contains(w.Body.String(), `"code":`) || !strings.Contains(w.Body.String(), `"detail":`) {
			t.Errorf("%s %s %s: %d %s", tc.method, tc.path, tc.body, w.Code, w.Body)
		}
		if w.Header().Get("Banger-Api") == "" {
			t.Errorf("%s: no version header", tc.path)
		}
	}
}

func ask[T any](t *testing.T, h http.Handler, method, path, body string) (int, T) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var out T
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Errorf("%s %s: %v in %s", method, path, err, w.Body)
	}
	return w.Code, out
}

func TestCreateChangeAndPrune(t *testing.T) {
	d := bareDaemon(t)
	h := d.routes()
	status, op := ask[api.Operation](t, h, "POST", "/v1/vms", `{"name":"a","no_start":true,"disk_bytes":1073741824,"nat":true,"network":"lan","autostart":true,"restart":"always","idle_stop_seconds":60,"cpu_weight":50,"io_weight":200,"cpu_limit_millis":500,"io_limit_bytes":1048576,"ephemeral":true}`)
	if status != http.StatusAccepted || op.VM == nil || op.VM.Name != "a" { // from the first answer on
		t.Fatalf("%d %+v", status, op)
	}
	v := op.VM
	if v.DiskBytes != 1<<30 || !v.NAT || v.Network != "lan" || !v.Autostart || v.Restart != api.RestartAlways || v.IdleStopSeconds != 60 || !v.Ephemeral ||
		v.CPUWeight != 50 || v.IOWeight != 200 || v.CPULimitMillis != 500 || v.IOLimitBytes != 1<<20 {
		t.Errorf("%+v", v)
	}
	status, now := ask[api.VM](t, h, "PATCH", "/v1/vms/a", `{"name":"b","nat":false,"network":""}`)
	if status != http.StatusOK || now.Name != "b" || now.NAT || now.Network != "" || now.ID != v.ID {
		t.Errorf("%d %+v", status, now)
	}
	if status, p := ask[api.Problem](t, h, "PATCH", "/v1/vms/b", `{"disk_bytes":104857600}`); status != 400 || !strings.Contains(p.Detail, "cannot become smaller") {
		t.Errorf("%d %+v", status, p)
	}
	status, dry := ask[api.Pruned](t, h, "POST", "/v1/vms/prune", `{"dry_run":true}`)
	if status != http.StatusAccepted || len(dry.VMs) != 1 || dry.Operations != nil {
		t.Errorf("%d %+v", status, dry)
	}
	if _, none := ask[api.Pruned](t, h, "POST", "/v1/vms/prune", `{"only":["ffffffffffff"]}`); len(none.VMs) != 0 {
		t.Errorf("%+v", none)
	}
	if _, young := ask[api.Pruned](t, h, "POST", "/v1/vms/prune", `{"older_than_seconds":3600}`); len(young.VMs) != 0 {
		t.Errorf("%+v", young)
	}
	_, real := ask[api.Pruned](t, h, "POST", "/v1/vms/prune", `{}`)
	if len(real.Operations) != 1 || real.Operations[0].Kind != "vm.prune" {
		t.Fatalf("%+v", real)
	}
	pruning, err := d.ops.get(real.Operations[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if s := await(t, pruning); s.Status != api.OperationSucceeded {
		t.Errorf("%+v", s.Error)
	}
	if status, _ := ask[api.Problem](t, h, "GET", "/v1/vms/b", ""); status != 404 {
		t.Errorf("it is still there: %d", status)
	}
}

func TestEventsAsTheyAreSent(t *testing.T) {
	d := bareDaemon(t)
	h := d.routes()
	if _, err := d.vms.Create(t.Context(), api.VMSpec{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/v1/events?follow=false": `"kind":"snapshot"`, "/v1/events?follow=false&since=0": `"kind":"state"`, "/v1/events?follow=false&since=1": `"kind":"missed"`} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
		if got := w.Body.String(); w.Code != 200 || w.Header().Get("Content-Type") != "text/event-stream" || !strings.HasPrefix(got, "event: vm\nid: ") ||
			!strings.Contains(got, want) || !strings.HasSuffix(got, "}\n\n") {
			t.Errorf("%s: %d %q", path, w.Code, got)
		}
	}
}
