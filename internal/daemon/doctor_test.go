package daemon

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/doctor"
	"banger/internal/helper"
	"banger/internal/installed"
)

// On a host without anything doctor still answers, and what cannot be found out
// is said.
func TestDoctorWithoutHelper(t *testing.T) {
	d := bareDaemon(t)
	d.host = doctor.Host{Root: t.TempDir(), Arch: "amd64", Release: "6.1.0", Now: time.Now, Record: installed.Record{Network: "172.16.0.1/16"}}
	d.helper = helper.NewClient(t.TempDir() + "/no.sock")
	w := httptest.NewRecorder()
	d.routes().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/doctor", nil))
	var checks []api.Check
	if err := json.Unmarshal(w.Body.Bytes(), &checks); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	byID := map[string]api.Check{}
	for _, c := range checks {
		if _, twice := byID[c.ID]; twice || c.Found == "" {
			t.Errorf("%+v is there twice, or says nothing", c)
		}
		byID[c.ID] = c
	}
	for id, want := range map[string]api.CheckStatus{"helper": "fail", "architecture": "pass", "store": "pass", "default-kernel": "warn", "kvm": ""} {
		if got := byID[id].Status; got != want {
			t.Errorf("%s: %q, want %q: %+v", id, got, want, byID[id])
		}
	}
}

func TestLeftoversAreOfNoRecord(t *testing.T) {
	d := bareDaemon(t)
	d.host = doctor.Host{Root: t.TempDir()}
	v, err := d.vms.Create(t.Context(), api.VMSpec{Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	const gone = "abcdefabcdef"
	kernel, files, err := d.leftovers(t.Context(), helper.HostFacts{Slots: []string{v.ID, gone}, Jails: []string{gone}})
	if err != nil || !slices.Equal(kernel.IDs(), []string{gone}) || len(files) != 0 {
		t.Errorf("%v, %v, %v", kernel, files, err)
	}
}

func TestRepairRefusesWhatItDoesNotKnow(t *testing.T) {
	h := bare(t)
	for body, status := range map[string]int{
		`{"checks":["kvm"]}`: 400, `{"checks":["leftovers","store"]}`: 400, `{"checks":[]}`: 422, `{}`: 422,
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/doctor/repair", strings.NewReader(body)))
		if w.Code != status {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
}
