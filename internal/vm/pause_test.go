package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/api"
	"banger/internal/store"
)

// fakeVMM is Firecracker's API in the jail of a VM.
type fakeVMM struct {
	mu      sync.Mutex
	version string
	refuse  string // a state it will not take
	states  []string
}

// inJail makes a running VM with a fakeVMM.
func inJail(t *testing.T, m *Manager, name string) (*store.VM, *fakeVMM) {
	t.Helper()
	v := recorded(t, m, name, api.StateRunning)
	if m.jails == m.JailDir {
		m.jails = t.TempDir()
	}
	v.UID, v.StartedAt, v.HostBoot = os.Getuid(), time.Now().UTC(), m.boot
	if err := m.Store.UpdateVM(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(m.jails, v.ID, "root/run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		t.Fatal(err)
	}
	// A short way to a socket whose path may be too long.
	dir, err := os.Open(run)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/api.sock", dir.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeVMM{version: "1.12.1"}
	srv := &http.Server{Handler: f, ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return v, f
}

func (f *fakeVMM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method == http.MethodGet {
		_, _ = io.WriteString(w, `{"state":"Running","vmm_version":"`+f.version+`"}`)
		return
	}
	var in struct{ State string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.State == f.refuse {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"fault_message":"no"}`)
		return
	}
	f.states = append(f.states, in.State)
	w.WriteHeader(http.StatusNoContent)
}

// recorded makes a VM in a state.
func recorded(t *testing.T, m *Manager, name string, s api.State) *store.VM {
	t.Helper()
	v, err := m.Create(t.Context(), api.VMSpec{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	v.State = s
	if err := m.Store.UpdateVM(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	return v
}

func wantState(t *testing.T, m *Manager, name string, want api.State) *store.VM {
	t.Helper()
	v, err := m.Get(t.Context(), name)
	if err != nil || v.State != want {
		t.Errorf("%s: %+v, %v; want %s", name, v, err, want)
	}
	return v
}

func TestPauseAndResume(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v, vmm := inJail(t, m, "a")
	if err := m.Pause(t.Context(), v.ID, "no room on the host", &stages{}); err != nil {
		t.Fatal(err)
	}
	if got := wantState(t, m, "a", api.StatePaused); got.Reason != "no room on the host" {
		t.Errorf("reason %q", got.Reason)
	}
	for what, err := range map[string]error{
		"pause again": m.Pause(t.Context(), v.ID, "", &stages{}), "start": m.Start(t.Context(), v.ID, false, &stages{}),
		"delete": m.Delete(t.Context(), v.ID, false, &stages{}), "dial": third(m.Dial(t.Context(), "a", 22)), "health": second(m.Health(t.Context(), "a")),
	} {
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Status != 409 || !strings.Contains(p.Detail, "paused") || p.Hint == "" {
			t.Errorf("%s: %v", what, err)
		}
		if answers := what == "dial" || what == "health" || what == "start"; ok && answers != (p.Code == api.CodePaused) {
			t.Errorf("%s: code %s", what, p.Code)
		}
	}
	if err := m.Resume(t.Context(), v.ID, &stages{}); err != nil {
		t.Fatal(err)
	}
	if got := wantState(t, m, "a", api.StateRunning); got.Reason != "" {
		t.Errorf("reason %q", got.Reason)
	}
	if err := m.Resume(t.Context(), v.ID, &stages{}); err == nil || !strings.Contains(err.Error(), "not paused") {
		t.Errorf("resume again: %v", err)
	}
	if want := []string{"Paused", "Resumed"}; !slices.Equal(vmm.states, want) {
		t.Errorf("Firecracker was told %v", vmm.states)
	}
}

func second[T any](_ T, err error) error { return err }

func third[T, U any](_ T, _ U, err error) error { return err }

func TestAPauseThatFailsLeavesTheVMRunning(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v, vmm := inJail(t, m, "a")
	vmm.refuse = "Paused"
	if err := m.Pause(t.Context(), v.ID, "", &stages{}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	wantState(t, m, "a", api.StateRunning)
	vmm.refuse, vmm.version = "", "1.16.1"
	err := m.Pause(t.Context(), v.ID, "", &stages{})
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != api.CodePrerequisite {
		t.Errorf("with a Firecracker that loses its vsock: %v", err)
	}
	wantState(t, m, "a", api.StateRunning)
	if !slices.Equal(vmm.states, []string{"Resumed"}) { // just to be sure
		t.Errorf("Firecracker was told %v", vmm.states)
	}
}

// A VM whose VMM cannot be resumed must not pass for one that answers.
func TestAResumeThatFailsLeavesTheVMPaused(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v, vmm := inJail(t, m, "a")
	if err := m.Pause(t.Context(), v.ID, "", &stages{}); err != nil {
		t.Fatal(err)
	}
	vmm.refuse = "Resumed"
	if err := m.Resume(t.Context(), v.ID, &stages{}); err == nil {
		t.Error("it was resumed")
	}
	wantState(t, m, "a", api.StatePaused)
}

func TestPausedVMsEnd(t *testing.T) {
	for name, end := range map[string]func(*Manager, *store.VM) error{
		"kill":   func(m *Manager, v *store.VM) error { return m.Kill(t.Context(), v.ID, &stages{}) },
		"delete": func(m *Manager, v *store.VM) error { return m.Delete(t.Context(), v.ID, true, &stages{}) },
		// The guest is no real one: it is killed when it does not hear.
		"stop": func(m *Manager, v *store.VM) error { return m.Stop(t.Context(), v.ID, time.Second, &stages{}) },
	} {
		h := &fakeHelper{}
		m := open(t, t.TempDir(), h, &fakeKernels{})
		v, vmm := inJail(t, m, "a")
		if err := m.Pause(t.Context(), v.ID, "", &stages{}); err != nil {
			t.Fatal(err)
		}
		if err := end(m, v); err != nil || !slices.Contains(h.called(), "kill") {
			t.Errorf("%s: %v, verbs %v", name, err, h.called())
		}
		if woken := slices.Contains(vmm.states, "Resumed"); woken != (name == "stop") {
			t.Errorf("%s: Firecracker was told %v", name, vmm.states)
		}
		if name != "delete" {
			wantState(t, m, "a", api.StateStopped)
		}
	}
}

func TestVerbsOfVMsThatDoNotRun(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v := recorded(t, m, "a", api.StateStopped)
	for what, err := range map[string]error{
		"pause": m.Pause(t.Context(), v.ID, "", &stages{}), "resume": m.Resume(t.Context(), v.ID, &stages{}),
		"dial": third(m.Dial(t.Context(), "a", 22)), "health": second(m.Health(t.Context(), "a")), "ports": second(m.Ports(t.Context(), "a")),
		"stats": second(m.Stats(t.Context(), "a")),
	} {
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Code != api.CodeNotRunning || p.Status != 409 || !strings.Contains(p.Hint, "banger vm start a") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestRestartIsStopAndStart(t *testing.T) {
	h := &fakeHelper{fail: map[string]error{"launch": errors.New("no KVM here")}}
	m := open(t, t.TempDir(), h, &fakeKernels{})
	v, _ := inJail(t, m, "a")
	var seen stages
	if err := m.Restart(t.Context(), v.ID, time.Second, &seen); err == nil || !strings.Contains(err.Error(), "no KVM here") {
		t.Errorf("%v", err)
	}
	if i := slices.Index(h.calls, "kill"); i < 0 || slices.Index(h.calls, "launch") < i {
		t.Errorf("verbs %v", h.calls)
	}
	wantState(t, m, "a", api.StateFailed)
}
