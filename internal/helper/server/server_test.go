package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/installed"
)

const (
	idA = "0123456789ab"
	idB = "ba9876543210"
)

// fakeUnits is a systemd in which every change of phase wakes the watches.
type fakeUnits struct {
	mu      sync.Mutex
	phases  map[string]phase
	changed chan struct{} // closed and replaced at each change
	onStop  func(id string)
}

func newFakeUnits() *fakeUnits {
	return &fakeUnits{phases: map[string]phase{}, changed: make(chan struct{})}
}

func (u *fakeUnits) set(id string, p phase) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.phases[id] = p
	close(u.changed)
	u.changed = make(chan struct{})
}

func (u *fakeUnits) phase(_ context.Context, id string) (phase, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.phases[id], nil
}

func (u *fakeUnits) start(context.Context, string, []property) error {
	return errors.New("not in this test")
}

func (u *fakeUnits) verdict(context.Context, string) (verdict, error) {
	return verdict{}, errors.New("not in this test")
}

func (u *fakeUnits) forget(_ context.Context, id string) error {
	u.set(id, unitGone)
	return nil
}

func (u *fakeUnits) stop(_ context.Context, id string) error {
	go u.onStop(id)
	return nil
}

func (u *fakeUnits) kill(ctx context.Context, id string) error { return u.stop(ctx, id) }

func (u *fakeUnits) watch(_ context.Context, id string) (unitWatch, error) {
	return fakeWatch{u, id}, nil
}

type fakeWatch struct {
	u  *fakeUnits
	id string
}

func (w fakeWatch) close() {}

func (w fakeWatch) await(ctx context.Context, accept func(phase) bool, wake <-chan struct{}) (phase, error) {
	for {
		w.u.mu.Lock()
		p, changed := w.u.phases[w.id], w.u.changed
		w.u.mu.Unlock()
		if accept(p) {
			return p, nil
		}
		select {
		case <-changed:
		case <-wake:
			return p, nil
		case <-ctx.Done():
			return p, ctx.Err()
		}
	}
}

func testServer(t testing.TB) (*Server, *fakeUnits) {
	t.Helper()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := New(
		installed.Record{UID: os.Getuid(), GID: os.Getgid(), UIDBase: 200000, UIDCount: 3},
		Places{
			State: state,
			Jails: filepath.Join(dir, "helper/jail/firecracker"),
			Blobs: filepath.Join(dir, "helper/blobs/sha256"),
			Slots: filepath.Join(dir, "helper/slots.json"),
			Ports: filepath.Join(dir, "run/ports.json"),
			Exit:  filepath.Join(dir, "run/exit"),
			Locks: filepath.Join(dir, "run/lock"),
		})
	if err != nil {
		t.Fatal(err)
	}
	u := newFakeUnits()
	s.units, s.checks = u, newFakeUnits()
	return s, u
}

func problem(err error) string {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Code
	}
	if err == nil {
		return ""
	}
	return "no problem: " + err.Error()
}

func TestSlots(t *testing.T) {
	s, _ := testServer(t)
	want := func(id string, slot int) {
		t.Helper()
		got, err := s.slots.reserve(id)
		if err != nil || got != (helper.Slot{Slot: slot, UID: 200000 + slot}) {
			t.Errorf("reserve(%s) = %+v, %v; want slot %d", id, got, err, slot)
		}
	}
	const c, d = "cccccccccccc", "dddddddddddd"
	want(idA, 0)
	want(idB, 1)
	want(idA, 0) // again
	want(c, 2)
	if _, err := s.slots.reserve(d); problem(err) != api.CodeConflict {
		t.Errorf("a fourth of three slots: %v", err)
	}
	if err := s.slots.release(idB); err != nil {
		t.Fatal(err)
	}
	want(d, 1) // the smallest free one
	if _, err := s.slots.lookup(idB); problem(err) != api.CodeNotFound {
		t.Errorf("lookup after release: %v", err)
	}
	again := registry{places: s.places, base: 200000, count: 3} // as after a restart
	if got, err := again.lookup(d); err != nil || got.Slot != 1 {
		t.Errorf("lookup = %+v, %v", got, err)
	}
	if left, _ := os.ReadDir(s.places.Locks); len(left) != 0 {
		t.Errorf("locks left: %v", left)
	}
}

func TestSlotsAreUniqueUnderConcurrency(t *testing.T) {
	s, _ := testServer(t)
	s.slots.count = 100
	var wg sync.WaitGroup
	got := make([]int, 40)
	for i := range got {
		wg.Go(func() {
			r := s.slots // another process has its own
			slot, err := r.reserve(strings.Repeat("0", 10) + string("0123456789"[i/10]) + string("0123456789"[i%10]))
			if err != nil {
				t.Error(err)
			}
			got[i] = slot.Slot
		})
	}
	wg.Wait()
	slices.Sort(got)
	if len(slices.Compact(got)) != 40 || got[39] != 39 {
		t.Errorf("slots %v", got)
	}
}

func TestSlotFileIsRefusedWhenItCannotBe(t *testing.T) {
	for name, text := range map[string]string{
		"cut off":    `{"slots":{"0123456789ab":`,
		"no slots":   `{}`,
		"twice":      `{"slots":{"0123456789ab":1,"ba9876543210":1}}`,
		"beyond":     `{"slots":{"0123456789ab":3}}`,
		"negative":   `{"slots":{"0123456789ab":-1}}`,
		"strange id": `{"slots":{"../../../etc":1}}`,
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := testServer(t)
			if err := os.WriteFile(s.places.Slots, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := s.slots.reserve(idB); err == nil {
				t.Errorf("reserve = %+v", got)
			}
			if raw, err := os.ReadFile(s.places.Slots); err != nil || string(raw) != text {
				t.Errorf("file became %q, %v", raw, err)
			}
		})
	}
}

func TestLockIsExclusiveAndLeavesNothing(t *testing.T) {
	s, _ := testServer(t)
	var inside, n atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if err := s.places.locked(idA, func() error {
					if inside.Add(1) != 1 {
						t.Error("two at once")
					}
					n.Add(1)
					inside.Add(-1)
					return nil
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n.Load() != 400 {
		t.Errorf("n = %d", n.Load())
	}
	if left, _ := os.ReadDir(s.places.Locks); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gates
		leave, err := g.enter(t.Context(), idA)
		if err != nil {
			t.Fatal(err)
		}
		other, err := g.enter(t.Context(), idB) // another VM does not wait
		if err != nil {
			t.Fatal(err)
		}
		other()
		ctx, cancel := context.WithCancel(t.Context())
		entered := make(chan error)
		go func() { _, err := g.enter(ctx, idA); entered <- err }()
		synctest.Wait()
		cancel()
		if err := <-entered; !errors.Is(err, context.Canceled) {
			t.Errorf("waiting with a cancelled context: %v", err)
		}
		leave()
		if len(g.m) != 0 {
			t.Errorf("%d gates left", len(g.m))
		}
	})
}

// vm.kill waits for the unit's end, which waits for "banger-helper cleanup",
// which takes the VM's lock.
func TestKillWaitsForCleanupWithoutItsLock(t *testing.T) {
	s, u := testServer(t)
	if _, err := s.slots.reserve(idA); err != nil {
		t.Fatal(err)
	}
	u.set(idA, unitRunning)
	u.onStop = func(id string) {
		u.set(id, unitEnding)
		if err := s.places.locked(id, func() error { return nil }); err != nil {
			t.Error(err)
		}
		u.set(id, unitGone)
	}
	if _, err := s.kill(t.Context(), helper.KillRequest{ID: idA}); err != nil {
		t.Fatal(err)
	}
	if p, _ := u.phase(t.Context(), idA); p != unitGone {
		t.Errorf("kill returned in phase %d", p)
	}
}

// While a verb waits for a VM's gate, the VM may be released and its slot be given to
// another: two VMMs would have one uid.
func TestASlotIsLookedUpInTheGate(t *testing.T) {
	s, _ := testServer(t)
	mine, err := s.slots.reserve(idA)
	if err != nil {
		t.Fatal(err)
	}
	leave, err := s.gates.enter(t.Context(), idA)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		slot, leave, err := s.hold(t.Context(), idA)
		if err == nil {
			leave()
			err = fmt.Errorf("held with uid %d", slot.UID)
		}
		got <- err
	}()
	for waits := false; !waits; {
		runtime.Gosched()
		s.gates.mu.Lock()
		waits = s.gates.m[idA].users == 2
		s.gates.mu.Unlock()
	}
	if err := s.slots.release(idA); err != nil {
		t.Fatal(err)
	}
	if theirs, err := s.slots.reserve(idB); err != nil || theirs != mine {
		t.Fatalf("%+v, %v", theirs, err)
	}
	leave()
	if err := <-got; problem(err) != api.CodeNotFound {
		t.Errorf("got %v", err)
	}
	if len(s.gates.m) != 0 {
		t.Errorf("%d gates are left", len(s.gates.m))
	}
}

func TestOnlyEndedVMsAreCleanedAndReleased(t *testing.T) {
	s, u := testServer(t)
	slot, err := s.slots.reserve(idA)
	if err != nil {
		t.Fatal(err)
	}
	jail := s.places.jail(idA)
	if err := os.MkdirAll(filepath.Join(jail, "root/run"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := helper.VMRequest{ID: idA}
	for _, p := range []phase{unitStarting, unitRunning} {
		u.set(idA, p)
		if _, err := s.cleanup(t.Context(), r); problem(err) != api.CodeConflict {
			t.Errorf("cleanup in phase %d: %v", p, err)
		}
		if _, err := s.release(t.Context(), r); problem(err) != api.CodeConflict {
			t.Errorf("release in phase %d: %v", p, err)
		}
	}
	if got, err := s.slots.lookup(idA); err != nil || got != slot {
		t.Errorf("slot is %+v, %v", got, err)
	}
	u.set(idA, unitEnding)
	go u.set(idA, unitEnded)
	if _, err := s.release(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(jail); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("jail: %v", err)
	}
	if _, err := s.slots.lookup(idA); problem(err) != api.CodeNotFound {
		t.Errorf("slot after release: %v", err)
	}
	if _, err := s.release(t.Context(), r); err != nil { // idempotent
		t.Error(err)
	}
}

func TestExitRecord(t *testing.T) {
	s, u := testServer(t)
	env := map[string]string{"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}
	if err := s.places.writeExit(idA, func(k string) string { return env[k] }); err != nil {
		t.Fatal(err)
	}
	e, err := readExit(s.places, idA)
	if err != nil || e.ID != idA || e.Result != "signal" || e.ExitCode != "killed" || e.Status != "KILL" || e.UnixNano == 0 {
		t.Errorf("record %+v, %v", e, err)
	}
	info, err := os.Stat(s.places.exitRecord(idA))
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	u.set(idA, unitRunning) // by hand, for a VM that lives
	if err := cleanupProcess(t.Context(), s.places, idA, func(string) string { return "" }, u); err == nil {
		t.Error("a running VM was cleaned up")
	}
	if err := cleanupProcess(t.Context(), s.places, "../"+idA, func(string) string { return "x" }, u); err == nil {
		t.Error("a strange id was taken")
	}
	for range 2 {
		if err := s.places.forgetExit(idA); err != nil {
			t.Error(err)
		}
	}
}

func TestPhaseOf(t *testing.T) {
	name := unitName(idA)
	for _, tt := range []struct {
		row  listedUnit
		want phase
	}{
		{listedUnit{Name: "other.service", Load: "loaded", Active: "active"}, unitGone},
		{listedUnit{Name: name, Load: "not-found", Active: "inactive"}, unitGone},
		{listedUnit{Name: name, Load: "loaded", Active: "inactive", JobID: 7}, unitStarting},
		{listedUnit{Name: name, Load: "loaded", Active: "activating", JobID: 7}, unitStarting},
		{listedUnit{Name: name, Load: "loaded", Active: "active"}, unitRunning},
		{listedUnit{Name: name, Load: "loaded", Active: "deactivating", JobID: 7}, unitEnding},
		{listedUnit{Name: name, Load: "loaded", Active: "failed"}, unitEnded},
		{listedUnit{Name: name, Load: "loaded", Active: "inactive"}, unitEnded},
	} {
		if got, err := phaseOf([]listedUnit{tt.row}, name); err != nil || got != tt.want {
			t.Errorf("%+v is %d, %v; want %d", tt.row, got, err, tt.want)
		}
	}
	if p, err := phaseOf([]listedUnit{{Name: name, Load: "loaded", Active: "dancing"}}, name); err == nil || p.over() {
		t.Errorf("an unknown state is %d, %v", p, err)
	}
}

func TestCheckLaunch(t *testing.T) {
	sha := strings.Repeat("a", 64)
	good := helper.LaunchRequest{ID: idA, Kernel: sha, Initrd: sha, VCPU: 1, MemoryMiB: 128}
	if err := checkLaunch(good); err != nil {
		t.Error(err)
	}
	for _, edge := range []helper.LaunchRequest{
		{CPUWeight: 1, IOWeight: 10000, CPULimitMillis: 10, IOLimitBytes: 1 << 20},
		{CPUWeight: 10000, IOWeight: 1, CPULimitMillis: 32000, IOLimitBytes: 1 << 40},
	} {
		r := edge
		r.ID, r.Kernel, r.Initrd, r.VCPU, r.MemoryMiB = good.ID, sha, sha, 1, 128
		if err := checkLaunch(r); err != nil {
			t.Errorf("%+v: %v", edge, err)
		}
	}
	for name, change := range map[string]func(*helper.LaunchRequest){
		"kernel":      func(r *helper.LaunchRequest) { r.Kernel = "../" + sha[3:] },
		"initrd":      func(r *helper.LaunchRequest) { r.Initrd = "" },
		"no vcpu":     func(r *helper.LaunchRequest) { r.VCPU = 0 },
		"many vcpus":  func(r *helper.LaunchRequest) { r.VCPU = 33 },
		"no memory":   func(r *helper.LaunchRequest) { r.MemoryMiB = 0 },
		"much memory": func(r *helper.LaunchRequest) { r.MemoryMiB = 1 << 40 },

		"light CPU":     func(r *helper.LaunchRequest) { r.CPUWeight = -1 },
		"heavy CPU":     func(r *helper.LaunchRequest) { r.CPUWeight = 10001 },
		"light IO":      func(r *helper.LaunchRequest) { r.IOWeight = -1 },
		"heavy IO":      func(r *helper.LaunchRequest) { r.IOWeight = 10001 },
		"negative CPUs": func(r *helper.LaunchRequest) { r.CPULimitMillis = -1 },
		"few CPUs":      func(r *helper.LaunchRequest) { r.CPULimitMillis = 9 },
		"many CPUs":     func(r *helper.LaunchRequest) { r.CPULimitMillis = 32001 },
		"negative IO":   func(r *helper.LaunchRequest) { r.IOLimitBytes = -1 },
		"little IO":     func(r *helper.LaunchRequest) { r.IOLimitBytes = 1<<20 - 1 },
		"much IO":       func(r *helper.LaunchRequest) { r.IOLimitBytes = 1<<40 + 1 },
	} {
		r := good
		change(&r)
		if err := checkLaunch(r); problem(err) != api.CodeBadRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSharesOfAUnit(t *testing.T) {
	s := &Server{}
	of := func(major, minor uint32) device { return device{dmStatus: dmStatus{dev: unix.Mkdev(major, minor)}} }
	shares := func(r helper.LaunchRequest) map[string]any {
		got := map[string]any{}
		for _, p := range s.vmUnit(vmmBuild{LaunchRequest: r, disks: []device{of(7, 1), of(253, 2)}}, "").properties() {
			if strings.HasPrefix(p.Name, "CPU") || strings.HasPrefix(p.Name, "IO") {
				got[p.Name] = p.Value.Value()
			}
		}
		return got
	}
	if d := cmp.Diff(map[string]any{"CPUWeight": uint64(100), "IOWeight": uint64(100)}, shares(helper.LaunchRequest{})); d != "" {
		t.Errorf("of an older bangerd's request: %s", d)
	}
	disks := []bandwidth{{"/dev/block/7:1", 1 << 20}, {"/dev/block/253:2", 1 << 20}}
	want := map[string]any{"CPUWeight": uint64(1), "IOWeight": uint64(10000), "CPUQuotaPerSecUSec": uint64(1500000),
		"IOReadBandwidthMax": disks, "IOWriteBandwidthMax": disks}
	if d := cmp.Diff(want, shares(helper.LaunchRequest{CPUWeight: 1, IOWeight: 10000, CPULimitMillis: 1500, IOLimitBytes: 1 << 20})); d != "" {
		t.Error(d)
	}
	for name, signature := range map[string]string{"IOReadBandwidthMax": "a(st)", "CPUWeight": "t", "CPUQuotaPerSecUSec": "t"} {
		if got := dbus.MakeVariant(want[name]).Signature().String(); got != signature {
			t.Errorf("systemd would refuse %s as %s", name, got)
		}
	}
}

func TestConcerns(t *testing.T) {
	event := func(mask uint32, name string) []byte {
		b := make([]byte, unix.SizeofInotifyEvent+16)
		b[4], b[5], b[6], b[7] = byte(mask), byte(mask>>8), byte(mask>>16), byte(mask>>24)
		b[12] = 16
		copy(b[unix.SizeofInotifyEvent:], name)
		return b
	}
	two := append(event(unix.IN_CREATE, "other"), event(unix.IN_CREATE, "api.sock")...)
	if !concerns(two, "api.sock") || concerns(two, "api") || concerns(two[:8], "api.sock") {
		t.Error("names are mixed up")
	}
	if !concerns(event(unix.IN_Q_OVERFLOW, ""), "api.sock") {
		t.Error("lost events are overlooked")
	}
}

// readExit reads a record as bangerd does.
func readExit(p Places, id string) (e helper.Exit, err error) {
	raw, err := os.ReadFile(p.exitRecord(id))
	if err == nil {
		err = json.Unmarshal(raw, &e)
	}
	return e, err
}
