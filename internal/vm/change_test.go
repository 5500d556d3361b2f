package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/api"
	"banger/internal/store"
)

// recordingChanger is a feature that makes changes true, or refuses them.
type recordingChanger struct {
	done  []string
	fail  func(old, now *store.VM) error
	stale []string
}

func (r *recordingChanger) applyChange(_ context.Context, old, now *store.VM) ([]string, error) {
	if r.fail != nil {
		if err := r.fail(old, now); err != nil {
			return nil, err
		}
	}
	r.done = append(r.done, show(old)+">"+show(now))
	return r.stale, nil
}

func show(v *store.VM) string {
	s := v.Name
	if v.NAT {
		s += "+nat"
	}
	if v.DiskBytes > 0 {
		s += "+disk"
	}
	return s
}

func TestChange(t *testing.T) {
	for name, tc := range map[string]struct {
		state  api.State
		change api.VMChange
		check  func(*store.VM) bool
		stale  []string
	}{
		"memory of a stopped one": {api.StateStopped, api.VMChange{MemoryMiB: new(200)}, func(v *store.VM) bool { return v.MemoryMiB == 200 }, nil},
		"memory of a running one": {api.StateRunning, api.VMChange{MemoryMiB: new(200)}, func(v *store.VM) bool { return v.MemoryMiB == 200 }, []string{"memory"}},
		"the same memory":         {api.StateRunning, api.VMChange{MemoryMiB: new(128)}, func(v *store.VM) bool { return v.MemoryMiB == 128 }, nil},
		"kernel of a paused one":  {api.StatePaused, api.VMChange{Kernel: new("other")}, func(v *store.VM) bool { return v.KernelID == "krn2" }, []string{"kernel"}},
		"image":                   {api.StateFailed, api.VMChange{Image: new("newer")}, func(v *store.VM) bool { return v.ImageID == "img2" && v.ImageName == "newer" }, nil},
		"the same image":          {api.StateRunning, api.VMChange{Image: new("debian")}, func(v *store.VM) bool { return v.ImageID == "img" }, nil},
		"a first disk, running":   {api.StateRunning, api.VMChange{DiskBytes: new(int64(1 << 30))}, func(v *store.VM) bool { return v.DiskBytes == 1<<30 }, []string{"disk"}},
		"name of a running one":   {api.StateRunning, api.VMChange{Name: new("z")}, func(v *store.VM) bool { return v.Name == "z" }, []string{"name"}},
		"shares of a stopped one": {api.StateStopped, api.VMChange{CPUWeight: new(1), IOWeight: new(10000), CPULimitMillis: new(10), IOLimitBytes: new(int64(1 << 20))},
			func(v *store.VM) bool {
				return v.CPUWeight == 1 && v.IOWeight == 10000 && v.CPULimit == 10 && v.IOLimit == 1<<20
			}, nil},
		"shares of a running one": {api.StateRunning, api.VMChange{CPUWeight: new(10000), IOWeight: new(1), CPULimitMillis: new(32000), IOLimitBytes: new(int64(1 << 40))},
			func(v *store.VM) bool {
				return v.CPUWeight == 10000 && v.IOWeight == 1 && v.CPULimit == 32000 && v.IOLimit == 1<<40
			}, []string{"cpu-limit", "cpu-weight", "io-limit", "io-weight"}},
		"the same shares": {api.StateRunning, api.VMChange{CPUWeight: new(0), CPULimitMillis: new(0)}, func(v *store.VM) bool { return v.CPUWeight == 0 }, nil},
		"policies at once": {api.StateRunning, api.VMChange{Autostart: new(true), Restart: new(api.RestartAlways), IdleStopSeconds: new(60), NAT: new(true), Network: new("lan")},
			func(v *store.VM) bool {
				return v.Autostart && v.Restart == api.RestartAlways && v.IdleStop == 60 && v.NAT && v.Network == "lan"
			}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := twoOfEach(t)
			v := recorded(t, m, "a", tc.state)
			got, err := m.Change(t.Context(), v.ID, tc.change)
			if err != nil {
				t.Fatal(err)
			}
			stored, err := m.Store.VMByID(t.Context(), v.ID)
			if err != nil || !tc.check(stored) || !slices.Equal(stored.Stale, tc.stale) {
				t.Errorf("%+v, %v", stored, err)
			}
			if d := cmp.Diff(got.Stale, stored.Stale); d != "" || got.State != tc.state {
				t.Errorf("the answer differs: %s", d)
			}
		})
	}
}

// twoOfEach is a manager with a second image and kernel.
func twoOfEach(t *testing.T) *Manager {
	t.Helper()
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	if err := errors.Join(m.Store.InsertImage(t.Context(), &store.Image{ID: "img2", Name: "newer"}),
		m.Store.InsertKernel(t.Context(), &store.Kernel{ID: "krn2", Name: "other", MinMemoryMiB: 100})); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestChangeRefusesAndChangesNothing(t *testing.T) {
	m := twoOfEach(t)
	recorded(t, m, "taken", api.StateStopped)
	for _, s := range []api.State{api.StateRunning, api.StateStopped} {
		v := recorded(t, m, "is-"+string(s), s)
		v.DiskBytes = 2 << 30
		if err := m.Store.UpdateVM(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		before, err := m.Store.VMByID(t.Context(), v.ID)
		if err != nil {
			t.Fatal(err)
		}
		for want, c := range map[string]api.VMChange{
			"nothing was given":  {},
			"is taken":           {Name: new("taken"), MemoryMiB: new(256)},
			"is no name":         {Name: new("Upper")},
			"looks like an id":   {Name: new("0123456789ab")},
			"no image \"nope\"":  {Image: new("nope"), NAT: new(true)},
			"no kernel \"nope\"": {Kernel: new("nope")},
			"0 vCPUs":            {VCPU: new(0)},
			"vCPUs are not":      {VCPU: new(runtime.NumCPU() + 1)},
			"63 MiB":             {MemoryMiB: new(63)},
			"90 MiB of memory":   {MemoryMiB: new(90), Kernel: new("other")}, // enough for the kernel it has
			"on this host":       {MemoryMiB: new(1 << 30)},
			"cannot become":      {DiskBytes: new(int64(1 << 30))},
			"cannot become sm":   {DiskBytes: new(int64(0))},
			"work disk of":       {DiskBytes: new(int64(2<<30 + 1))},
			"no name of a net":   {Network: new("A b")},
			"no restart policy":  {Restart: new(api.Restart("maybe"))},
			"idle seconds":       {IdleStopSeconds: new(-1)},
			"weight of -1":       {CPUWeight: new(-1)},
			"weight of 10001":    {CPUWeight: new(10001)},
			"weight of -2":       {IOWeight: new(-2)},
			"weight of 10002":    {IOWeight: new(10002)},
			"of 9 thousandths":   {CPULimitMillis: new(9)},
			"of 32001 thousan":   {CPULimitMillis: new(32001)},
			"of -1 thousandths":  {CPULimitMillis: new(-1)},
			"of 1048575 bytes":   {IOLimitBytes: new(int64(1<<20 - 1))},
			"of 1099511627777 b": {IOLimitBytes: new(int64(1<<40 + 1))},
			"of -1 bytes":        {IOLimitBytes: new(int64(-1))},
		} {
			_, err := m.Change(t.Context(), v.ID, c)
			p, ok := errors.AsType[*api.Problem](err)
			if !ok || p.Status >= 500 || !strings.Contains(p.Detail, want) || !strings.HasPrefix(p.Detail, "cannot change VM") {
				t.Errorf("%s, %s: %v", s, want, err)
			}
		}
		if _, err := m.Change(t.Context(), v.ID, api.VMChange{Image: new("newer")}); (err != nil) != (s == api.StateRunning) {
			t.Errorf("%s: another image: %v", s, err)
		}
		after, err := m.Store.VMByID(t.Context(), v.ID)
		if err != nil {
			t.Fatal(err)
		}
		if s == api.StateStopped { // the one change that went through
			before.ImageID, before.ImageName = "img2", "newer"
		}
		if d := cmp.Diff(before, after); d != "" {
			t.Errorf("%s: %s", s, d)
		}
	}
}

func TestAnotherImageMeansAnotherRootDiskAndTheSameWorkDisk(t *testing.T) {
	m := twoOfEach(t)
	v := recorded(t, m, "a", api.StateStopped)
	overlay, work := filepath.Join(m.dir(v), "overlay.cow"), filepath.Join(m.dir(v), "work.ext4")
	if err := errors.Join(os.MkdirAll(m.dir(v), 0o700), os.WriteFile(overlay, []byte("o"), 0o600), os.WriteFile(work, []byte("w"), 0o600)); err != nil {
		t.Fatal(err)
	}
	recorded(t, m, "taken", api.StateStopped)
	if _, err := m.Change(t.Context(), v.ID, api.VMChange{Image: new("newer"), Name: new("taken")}); err == nil {
		t.Error("a taken name was accepted")
	}
	if raw, err := os.ReadFile(overlay); err != nil || string(raw) != "o" {
		t.Errorf("the root disk did not come back: %q, %v", raw, err)
	}
	if _, err := m.Change(t.Context(), v.ID, api.VMChange{Image: new("newer")}); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(m.dir(v))
	if err != nil || len(left) != 1 || left[0].Name() != "work.ext4" {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestARunningVMIsChangedAtOnce(t *testing.T) {
	m := twoOfEach(t)
	first, last := &recordingChanger{}, &recordingChanger{stale: []string{"disk"}}
	m.changes = []changer{first, last}
	v := recorded(t, m, "a", api.StateRunning)
	v.DiskBytes = 1 << 30
	if err := m.Store.UpdateVM(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	got, err := m.Change(t.Context(), v.ID, api.VMChange{NAT: new(true), DiskBytes: new(int64(2 << 30))})
	if err != nil || !slices.Equal(got.Stale, []string{"disk"}) {
		t.Errorf("%+v, %v", got, err)
	}
	// What can be undone goes first.
	if want := []string{"a+disk>a+nat+disk", "a+nat+disk>a+nat+disk"}; !slices.Equal(first.done, want) {
		t.Errorf("%v", first.done)
	}
	recordedStopped := recorded(t, m, "b", api.StateStopped)
	first.done = nil
	if _, err := m.Change(t.Context(), recordedStopped.ID, api.VMChange{NAT: new(true)}); err != nil || first.done != nil {
		t.Errorf("a stopped VM: %v, %v", first.done, err)
	}
}

func TestAChangeThatFailsHalfWayIsUndone(t *testing.T) {
	for name, fail := range map[string]func(old, now *store.VM) error{
		"the network": func(old, now *store.VM) error {
			if now.NAT && !old.NAT {
				return errors.New("forwarding is forbidden")
			}
			return nil
		},
		"the disk": func(old, now *store.VM) error {
			if now.DiskBytes > old.DiskBytes {
				return errors.New("the host is full")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := twoOfEach(t)
			first := &recordingChanger{}
			m.changes = []changer{first, &recordingChanger{fail: fail}}
			v := recorded(t, m, "a", api.StateRunning)
			v.DiskBytes = 1 << 30
			if err := m.Store.UpdateVM(t.Context(), v); err != nil {
				t.Fatal(err)
			}
			before, err := m.Store.VMByID(t.Context(), v.ID)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.Change(t.Context(), v.ID, api.VMChange{Name: new("z"), NAT: new(true), VCPU: new(min(2, runtime.NumCPU())), DiskBytes: new(int64(2 << 30))}); err == nil {
				t.Fatal("it was changed")
			}
			after, err := m.Store.VMByID(t.Context(), v.ID)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(before, after); d != "" {
				t.Error(d)
			}
			if end := first.done[len(first.done)-1]; !strings.HasSuffix(end, ">a+disk") {
				t.Errorf("not undone: %v", first.done)
			}
			if list, _, _, _ := m.events.after(m.events.oldest()); list[len(list)-1].Kind != api.EventState {
				t.Errorf("it was told as if it had happened: %+v", list)
			}
		})
	}
}

func TestPrune(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	for _, s := range []api.State{api.StateCreated, api.StateStopped, api.StateFailed, api.StateRunning, api.StatePaused, api.StateStarting, api.StateStopping} {
		recorded(t, m, "is-"+string(s), s)
	}
	young := recorded(t, m, "young", api.StateStopped)
	young.StartedAt = time.Now().Add(time.Hour).UTC()
	if err := m.Store.UpdateVM(t.Context(), young); err != nil {
		t.Fatal(err)
	}
	old, err := m.Prunable(t.Context(), time.Now())
	names := []string{}
	for _, v := range old {
		names = append(names, v.Name)
	}
	if slices.Sort(names); err != nil || !slices.Equal(names, []string{"is-created", "is-failed", "is-stopped"}) {
		t.Fatalf("%v, %v", names, err)
	}
	// One of them is started before its turn comes.
	old[0].State = api.StateRunning
	if err := m.Store.UpdateVM(t.Context(), old[0]); err != nil {
		t.Fatal(err)
	}
	for i, v := range old {
		err := m.Prune(t.Context(), v.ID, time.Now(), &stages{})
		if (err != nil) != (i == 0) {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
	if left, err := m.List(t.Context()); err != nil || len(left) != 6 {
		t.Errorf("%d are left, %v", len(left), err)
	}
}

// A crash between putting the root disk aside and storing the record must not
// cost it; one after the record must not bring it back.
func TestARootDiskPutAsideIsFoundAgain(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v := recorded(t, m, "a", api.StateStopped)
	r := &startRun{m: m, vm: v, overlay: filepath.Join("vms", v.ID, "overlay.cow")}
	overlay := r.abs(r.overlay)
	if err := errors.Join(os.MkdirAll(filepath.Dir(overlay), 0o700),
		os.WriteFile(asideOverlay(overlay, v.ImageID), []byte("kept"), 0o600),
		os.WriteFile(asideOverlay(overlay, "0123456789ab"), []byte("old"), 0o600),
		os.WriteFile(overlay+".202611281830", []byte("a copy"), 0o600),
		r.takeBackOverlay()); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(overlay); err != nil || string(raw) != "kept" {
		t.Errorf("%q, %v", raw, err)
	}
	if left, _ := filepath.Glob(overlay + ".*"); !slices.Equal(left, []string{overlay + ".202611281830"}) {
		t.Errorf("%v is left, want the owner's copy alone", left)
	}
}
