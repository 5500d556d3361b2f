package daemon

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"banger/internal/artifact"
	"banger/internal/store"
	"banger/internal/vm"
)

// bare is a daemon whose store is empty and whose helper is never asked.
func bare(t *testing.T) http.Handler {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir+"/banger.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	d := &Daemon{log: quiet(), store: s, ops: newOperations(quiet())}
	if d.images, err = artifact.OpenImages(t.Context(), s, dir+"/images", 1<<30, quiet()); err != nil {
		t.Fatal(err)
	}
	if d.vms, err = vm.NewManager(t.Context(), vm.Options{Store: s, Log: quiet(), StateDir: dir, ExitDir: dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.vms.Close() })
	return d.routes()
}

func TestEveryPathParameterReachesItsHandler(t *testing.T) {
	h := bare(t)
	for _, route := range []string{
		"GET /v1/vms/absent", "POST /v1/vms/absent/start", "POST /v1/vms/absent/stop", "POST /v1/vms/absent/stop?timeout=3",
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
