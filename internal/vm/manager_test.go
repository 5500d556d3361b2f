package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/identity"
	"banger/internal/installed"
	"banger/internal/store"
)

// fakeHelper records the verbs it is asked for and refuses those in fail. It
// stands in only where no VMM can be had: what needs one is in test/e2e.
type fakeHelper struct {
	mu       sync.Mutex // of the two below
	calls    []string
	fail     map[string]error
	policies []helper.NetworkRequest
	launched helper.LaunchRequest // the last
}

func (f *fakeHelper) do(verb string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, verb)
	return f.fail[verb]
}

func (f *fakeHelper) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakeHelper) mend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = nil
}

func (f *fakeHelper) Reserve(context.Context, string) (helper.Slot, error) {
	return helper.Slot{Slot: 3, UID: 200003}, f.do("reserve")
}
func (f *fakeHelper) Release(context.Context, string) error { return f.do("release") }
func (f *fakeHelper) Attach(context.Context, helper.AttachRequest) (helper.Attached, error) {
	return helper.Attached{}, f.do("attach")
}
func (f *fakeHelper) Launch(_ context.Context, r helper.LaunchRequest) (helper.Launched, error) {
	f.launched = r
	return helper.Launched{}, f.do("launch")
}
func (f *fakeHelper) Handover(context.Context, string) error  { return f.do("handover") }
func (f *fakeHelper) Kill(context.Context, string) error      { return f.do("kill") }
func (f *fakeHelper) BeginKill(context.Context, string) error { return f.do("begin kill") }
func (f *fakeHelper) Cleanup(context.Context, string) error   { return f.do("cleanup") }
func (f *fakeHelper) Grow(context.Context, string) (helper.Disk, error) {
	return helper.Disk{}, f.do("grow")
}
func (f *fakeHelper) Fsck(_ context.Context, r helper.FsckRequest) (helper.Checked, error) {
	return helper.Checked{}, f.do("fsck " + r.Disk)
}
func (f *fakeHelper) EnsureBridge(context.Context) (helper.Network, error) {
	return helper.Network{}, f.do("bridge")
}
func (f *fakeHelper) ApplyNetwork(_ context.Context, r helper.NetworkRequest) error {
	f.policies = append(f.policies, r)
	return f.do("network")
}

type fakeDisks struct{ made []string }

func (f *fakeDisks) Create(_ context.Context, path string, _ int64) error {
	f.made = append(f.made, "create "+filepath.Base(path))
	return os.WriteFile(path, []byte("x"), 0o600)
}

func (f *fakeDisks) Grow(path string, _ int64) error {
	f.made = append(f.made, "grow "+filepath.Base(path))
	return nil
}

// fakeNames is a zone.
type fakeNames struct {
	mu    sync.Mutex
	names map[string]netip.Addr
}

func (f *fakeNames) Set(name string, addr netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names == nil {
		f.names = map[string]netip.Addr{}
	}
	f.names[name] = addr
}

func (f *fakeNames) Delete(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.names, name)
}

type fakeKernels struct{ resent int }

func (f *fakeKernels) Blobs(_ context.Context, _ *store.Kernel, resend bool) (string, string, error) {
	if resend {
		f.resent++
	}
	return "k", "i", nil
}

// open makes a manager whose store is at path, with an image and a kernel.
func open(t *testing.T, path string, h *fakeHelper, k Kernels) *Manager {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(path, "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	auth, err := identity.Open(filepath.Join(path, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Image(t.Context(), "debian"); errors.Is(err, store.ErrNotFound) {
		if err := errors.Join(
			s.InsertImage(t.Context(), &store.Image{ID: "img", Name: "debian"}),
			s.InsertKernel(t.Context(), &store.Kernel{ID: "krn", Name: "host", MinMemoryMiB: 64}),
			os.MkdirAll(filepath.Join(path, "images/img"), 0o700),
			os.MkdirAll(filepath.Join(path, "exit"), 0o700),
			os.MkdirAll(filepath.Join(path, "jail/firecracker"), 0o711),
			os.WriteFile(filepath.Join(path, "vmm"), nil, 0o755),
			os.WriteFile(filepath.Join(path, "ip_forward"), []byte("1\n"), 0o600),
			os.WriteFile(filepath.Join(path, "images/img/rootfs.ext4"), make([]byte, 4096), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	m, err := NewManager(t.Context(), Options{Store: s, Helper: h, Kernels: k, Hosts: auth, Log: slog.New(slog.DiscardHandler),
		StateDir: path, ExitDir: filepath.Join(path, "exit"), ForwardSwitch: filepath.Join(path, "ip_forward"), DefaultImage: "debian", DefaultKernel: "host",
		DefaultVCPU: 1, DefaultMemory: 128, StartTimeout: 10 * time.Second,
		Disks: &fakeDisks{}, Names: &fakeNames{}, JailDir: filepath.Join(path, "jail/firecracker"), JailOwner: os.Getuid(),
		RunDir: path, Zone: "vm",
		Record: installed.Record{Bridge: "br-test", Network: "10.9.0.1/24",
			Firecracker: filepath.Join(path, "vmm"), Jailer: filepath.Join(path, "vmm")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func TestCreateRefuses(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	if _, err := m.Create(t.Context(), api.VMSpec{Name: "taken"}); err != nil {
		t.Fatal(err)
	}
	n := func(i int) *int { return &i }
	for want, spec := range map[string]api.VMSpec{
		"is no name":         {Name: "Upper"},
		"-x\" is no name":    {Name: "-x"},
		"is taken":           {Name: "taken"},
		"no image \"nope\"":  {Image: "nope"},
		"no kernel \"nope\"": {Kernel: "nope"},
		"0 vCPUs":            {VCPU: n(0)},
		"33 vCPUs":           {VCPU: n(33)},
		"63 MiB":             {MemoryMiB: n(63)},
		"-1 MiB":             {MemoryMiB: n(-1)},
	} {
		_, err := m.Create(t.Context(), spec)
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Status >= 500 || !strings.Contains(p.Detail, want) || p.Hint == "" {
			t.Errorf("%+v: %v", spec, err)
		}
	}
	if vs, err := m.List(t.Context()); err != nil || len(vs) != 1 {
		t.Errorf("%d VMs are left, %v", len(vs), err)
	}
	if v, err := m.Create(t.Context(), api.VMSpec{}); err != nil || v.Name == "" {
		t.Errorf("generated name: %v, %v", v, err)
	}
}

func TestFailedStartUndoesAndTells(t *testing.T) {
	dir := t.TempDir()
	h := &fakeHelper{fail: map[string]error{"launch": api.Problemf(500, helper.CodeVMMEnded, "firecracker is ill").WithHint("call a doctor")}}
	m := open(t, dir, h, &fakeKernels{})
	v, err := m.Create(t.Context(), api.VMSpec{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	var seen stages
	err = m.Start(t.Context(), v.ID, false, &seen)
	p, ok := errors.AsType[*api.Problem](err)
	if !ok || p.Code != helper.CodeVMMEnded || p.Hint != "call a doctor" || !strings.Contains(p.Detail, "firecracker_launch: firecracker is ill") {
		t.Errorf("error %v (%+v)", err, p)
	}
	if want := []string{"reserve", "bridge", "attach", "launch", "kill", "cleanup"}; !slices.Equal(h.calls, want) {
		t.Errorf("verbs %v, want %v", h.calls, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "vms", v.ID, "overlay.cow")); err == nil {
		t.Error("the overlay is left")
	}
	got, err := m.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	times, err := got.Phases()
	if err != nil || got.State != api.StateFailed || !strings.Contains(got.Reason, "firecracker is ill") || len(times) == 0 {
		t.Errorf("record %+v, %v", got, err)
	}

	h.calls = nil
	if err := m.Delete(t.Context(), v.ID, false, &seen); err != nil {
		t.Fatal(err)
	}
	if want := []string{"kill", "cleanup", "release"}; !slices.Equal(h.calls, want) {
		t.Errorf("verbs of delete %v, want %v", h.calls, want)
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, "vms")); len(entries) != 0 {
		t.Errorf("files are left: %v", entries)
	}
}

func TestUndoNeverRemovesAnOverlayOfAnEarlierRun(t *testing.T) {
	dir := t.TempDir()
	h := &fakeHelper{fail: map[string]error{"attach": errors.New("no")}}
	m := open(t, dir, h, &fakeKernels{})
	v, err := m.Create(t.Context(), api.VMSpec{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "vms", v.ID, "overlay.cow")
	if err := errors.Join(os.MkdirAll(filepath.Dir(overlay), 0o700), os.WriteFile(overlay, []byte("data"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context(), v.ID, false, &stages{}); err == nil {
		t.Fatal("it started")
	}
	if raw, err := os.ReadFile(overlay); err != nil || string(raw) != "data" {
		t.Errorf("overlay %q, %v", raw, err)
	}
}

func TestLostBlobsAreSentAgainOnce(t *testing.T) {
	h := &fakeHelper{fail: map[string]error{"launch": api.Problemf(404, helper.CodeBlobUnknown, "no blob")}}
	k := &fakeKernels{}
	m := open(t, t.TempDir(), h, k)
	v, err := m.Create(t.Context(), api.VMSpec{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context(), v.ID, false, &stages{}); err == nil || k.resent != 1 {
		t.Errorf("resent %d times, %v", k.resent, err)
	}
}

func TestReconcileMarksWhatWasCaughtInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	h := &fakeHelper{}
	m := open(t, dir, h, &fakeKernels{})
	boot := m.boot
	for name, v := range map[string]struct {
		state api.State
		boot  string
	}{"starting": {api.StateStarting, boot}, "stopping": {api.StateStopping, boot}, "lost": {api.StateRunning, boot},
		"told": {api.StateRunning, boot}, "rebooted": {api.StateRunning, "another"}, "idle": {api.StateStopped, boot}} {
		r, err := m.Create(t.Context(), api.VMSpec{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		r.State, r.HostBoot, r.Slot = v.state, v.boot, 1
		if err := m.Store.UpdateVM(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if name == "told" {
			writeExit(t, m.ExitDir, helper.Exit{ID: r.ID, Result: "signal", ExitCode: "killed", Status: "KILL"})
		}
	}
	if err := errors.Join(m.Close(), m.Store.Close()); err != nil {
		t.Fatal(err)
	}
	m = open(t, dir, h, &fakeKernels{})
	for name, want := range map[string]struct {
		state  api.State
		reason string
	}{"starting": {api.StateFailed, "was starting"}, "stopping": {api.StateStopped, ""}, "lost": {api.StateFailed, "not running"},
		"told": {api.StateFailed, "signal KILL"}, "rebooted": {api.StateStopped, "host was restarted"}, "idle": {api.StateStopped, ""}} {
		v := awaitState(t, m, name, want.state)
		if !strings.Contains(v.Reason, want.reason) {
			t.Errorf("%s: %q", name, v.Reason)
		}
	}
}

func TestAfterABootNothingRunsWhateverTheHelperSays(t *testing.T) {
	dir := t.TempDir()
	h := &fakeHelper{fail: map[string]error{"cleanup": errors.New("no")}}
	m := open(t, dir, h, &fakeKernels{})
	v := recorded(t, m, "a", api.StateRunning)
	v.HostBoot = "another"
	if err := errors.Join(m.Store.UpdateVM(t.Context(), v), m.Close(), m.Store.Close()); err != nil {
		t.Fatal(err)
	}
	m = open(t, dir, h, &fakeKernels{})
	if now, err := m.Get(t.Context(), "a"); err != nil || now.State != api.StateStopped {
		t.Errorf("%+v, %v", now, err)
	}
}

func TestAnEndNobodyAskedForIsRecorded(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	for name, tc := range map[string]struct {
		exit helper.Exit
		want api.State
	}{
		"crash": {helper.Exit{Result: "exit-code", ExitCode: "exited", Status: "148"}, api.StateFailed},
	} {
		v, err := m.Create(t.Context(), api.VMSpec{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		v.State, v.StartedAt = api.StateRunning, time.Now()
		if err := m.Store.UpdateVM(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		tc.exit.ID = v.ID
		told, done := m.exits.wait(v.ID)
		writeExit(t, m.ExitDir, tc.exit)
		if e := <-told; e.Result != tc.exit.Result {
			t.Errorf("%s: told %+v", name, e)
		}
		done()
		awaitState(t, m, name, tc.want)
	}
}

// awaitState waits for what is recorded in the background, under the VM's lock.
func awaitState(t *testing.T, m *Manager, name string, want api.State, reason ...string) *store.VM {
	t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		v, err := m.Get(t.Context(), name)
		if err == nil && v.State == want && strings.Contains(v.Reason, strings.Join(reason, " ")) {
			return v
		}
		select {
		case <-deadline:
			t.Fatalf("%s: state %s %q, want %s %q (%v)", name, v.State, v.Reason, want, reason, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestAnEndOfAnEarlierRunIsIgnored(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v, err := m.Create(t.Context(), api.VMSpec{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	v.State = api.StateRunning
	if err := m.Store.UpdateVM(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	m.exited(helper.Exit{ID: v.ID, Result: "signal", ExitCode: "killed", Status: "KILL"}) // its record is gone
	if err := m.Close(); err != nil {                                                     // waits for what it does in the background
		t.Fatal(err)
	}
	if got, err := m.Get(t.Context(), "a"); err != nil || got.State != api.StateRunning {
		t.Errorf("state %s, %v", got.State, err)
	}
}

func TestACancelledStartSaysSo(t *testing.T) {
	for name, answer := range map[string]func(context.Context) error{
		"its own word":      context.Context.Err,
		"the caller's word": func(ctx context.Context) error { return fmt.Errorf("cannot do it: %w", context.Cause(ctx)) },
	} {
		m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
		v, err := m.Create(t.Context(), api.VMSpec{Name: "a"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		m.Helper = &cancelling{fakeHelper: &fakeHelper{}, cancel: func() { cancel(ErrCancelled) }, answer: answer}
		err = m.Start(ctx, v.ID, false, &stages{})
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Code != api.CodeCancelled || strings.Count(p.Detail, ErrCancelled.Error()) != 1 {
			t.Errorf("%s: %v (%+v)", name, err, p)
		}
		if got, err := m.Get(t.Context(), "a"); err != nil || got.State != api.StateFailed {
			t.Errorf("%s: state %s, %v", name, got.State, err)
		}
	}
}

// cancelling is a person who gives up while the disk is made.
type cancelling struct {
	*fakeHelper
	cancel func()
	answer func(context.Context) error
}

func (c *cancelling) Attach(ctx context.Context, _ helper.AttachRequest) (helper.Attached, error) {
	c.cancel()
	return helper.Attached{}, c.answer(ctx)
}

func TestAStopCutOffByTheDaemonIsFinishedLater(t *testing.T) {
	ended := make(chan helper.Exit, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrEnding)
	if err := awaitEnd(ctx, end{verdict: ended}, time.Hour); !errors.Is(err, ErrEnding) {
		t.Errorf("bangerd's end: %v", err)
	}
	ctx, cancel = context.WithCancelCause(t.Context())
	cancel(ErrCancelled) // a person cannot call a guest back
	ended <- helper.Exit{}
	if err := awaitEnd(ctx, end{verdict: ended}, time.Hour); err != nil {
		t.Errorf("a person's: %v", err)
	}
}

func writeExit(t *testing.T, dir string, e helper.Exit) {
	t.Helper()
	raw, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	temp := filepath.Join(dir, ".tmp")
	if err := errors.Join(os.WriteFile(temp, raw, 0o600), os.Rename(temp, filepath.Join(dir, e.ID+".json"))); err != nil {
		t.Fatal(err)
	}
}

func TestLocksAreOnePerKeyAndGoAway(t *testing.T) {
	var k keyedLocks
	unlock, err := k.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := k.lock(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if _, err := k.lock(ctx, "a"); err == nil || err.Error() != "enough" {
		t.Errorf("a held lock was given, or the cause lost: %v", err)
	}
	unlock()
	other()
	if len(k.m) != 0 {
		t.Errorf("%d locks are left", len(k.m))
	}
}

func mustGet(t *testing.T, m *Manager, name string) *store.VM {
	t.Helper()
	v, err := m.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
