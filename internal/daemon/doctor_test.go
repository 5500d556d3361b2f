package daemon

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/doctor"
	"banger/internal/helper"
	"banger/internal/installed"
	"banger/internal/paths"
	"banger/internal/store"
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

// A loop device without a disk is a leftover unless it lies on files of a VM that
// exists.
func TestLoopsAreOfNoRecord(t *testing.T) {
	d := bareDaemon(t)
	root := t.TempDir()
	d.host = doctor.Host{Root: root}
	v, err := d.vms.Create(t.Context(), api.VMSpec{Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	for device, id := range map[string]string{"loop3": v.ID, "loop4": "abcdefabcdef"} {
		for _, dir := range []string{"/loop", "/holders"} {
			if err := os.MkdirAll(root+"/sys/block/"+device+dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(root+"/sys/block/"+device+"/loop/backing_file", []byte(paths.StateDir+"/vms/"+id+"/work\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f := d.checkLeftovers(t.Context(), helper.HostFacts{})
	if f.Status != api.CheckWarn || !strings.Contains(f.Found, "loop4") || strings.Contains(f.Found, "loop3") || f.Repair != "" {
		t.Errorf("%+v", f)
	}
}

func TestSomeGuestRuns(t *testing.T) {
	d := bareDaemon(t)
	d.record.Network = "172.16.0.1/16"
	for i, state := range []api.State{api.StateStopped, api.StateRunning} {
		if name, _, found := d.someGuest(t.Context()); found {
			t.Errorf("%s runs", name)
		}
		id := strings.Repeat(strconv.Itoa(i), 12)
		if err := d.store.InsertVM(t.Context(), &store.VM{ID: id, Name: "box" + strconv.Itoa(i), State: state, Slot: 5 + i, ImageID: "i", KernelID: "k"}); err != nil {
			t.Fatal(err)
		}
	}
	if name, addr, found := d.someGuest(t.Context()); !found || name != "box1.vm" || addr.String() != "172.16.0.8" {
		t.Errorf("%q, %s, %t", name, addr, found)
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
