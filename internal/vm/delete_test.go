package vm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/store"
)

// withDisk makes a stopped VM that has been started once.
func withDisk(t *testing.T, m *Manager) (v *store.VM, overlay string) {
	t.Helper()
	v, err := m.Create(t.Context(), api.VMSpec{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	v.State, v.StartedAt = api.StateStopped, time.Now()
	overlay = filepath.Join(m.dir(v), "overlay.cow")
	if err := errors.Join(m.Store.UpdateVM(t.Context(), v), os.MkdirAll(m.dir(v), 0o700), os.WriteFile(overlay, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	return v, overlay
}

func TestADeleteThatFailsLeavesTheVMAsItWas(t *testing.T) {
	h := &fakeHelper{fail: map[string]error{"release": errors.New("no")}}
	m := open(t, t.TempDir(), h, &fakeKernels{})
	v, overlay := withDisk(t, m)
	if err := m.Delete(t.Context(), v.ID, false, &stages{}); err == nil || !strings.Contains(err.Error(), `cannot delete VM "a": no`) {
		t.Errorf("error %v", err)
	}
	now, err := m.Get(t.Context(), "a")
	if err != nil || now.State != api.StateStopped {
		t.Errorf("record %+v, %v", now, err)
	}
	if raw, err := os.ReadFile(overlay); err != nil || string(raw) != "x" {
		t.Errorf("its disk: %q, %v", raw, err)
	}
	if _, err := os.Lstat(m.doomedDir(v.ID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still marked: %v", err)
	}
	h.fail = nil
	if err := m.Delete(t.Context(), v.ID, false, &stages{}); err != nil {
		t.Error(err)
	}
}

func TestADeleteThatWasCutOffIsCompleted(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir, &fakeHelper{}, &fakeKernels{})
	v, _ := withDisk(t, m)
	if err := errors.Join(os.Rename(m.dir(v), m.doomedDir(v.ID)), os.Mkdir(m.doomedDir("0123456789ab"), 0o700), m.Close()); err != nil {
		t.Fatal(err)
	}
	m = open(t, dir, &fakeHelper{}, &fakeKernels{})
	if _, err := m.Get(t.Context(), "a"); err == nil {
		t.Error("the VM is still there")
	}
	wantNoFiles(t, dir)
}

// wantNoFiles waits for what is swept behind a delete's answer.
func wantNoFiles(t *testing.T, dir string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		left, err := os.ReadDir(filepath.Join(dir, "vms"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("left %v", left)
		}
	}
}

func TestADeleteOfARunningVMIsSweptUntilNothingIsLeft(t *testing.T) {
	dir := t.TempDir()
	h := &fakeHelper{fail: map[string]error{"release": errors.New("not yet")}}
	m := open(t, dir, h, &fakeKernels{})
	v, _ := withDisk(t, m)
	v.State = api.StateRunning
	if err := m.Store.UpdateVM(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if err := m.Delete(t.Context(), v.ID, true, &stages{}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Get(t.Context(), "a"); err == nil {
		t.Error("the name is not free")
	}
	if _, err := os.Lstat(m.doomedDir(v.ID)); err != nil {
		t.Errorf("its disks went before what uses them: %v", err)
	}
	h.mend()
	wantNoFiles(t, dir)
}

func TestAStartTakesBackADeleteWhoseDisksAreGone(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{fail: map[string]error{"launch": errors.New("no")}}, &fakeKernels{})
	v, _ := withDisk(t, m)
	if err := errors.Join(os.RemoveAll(m.dir(v)), os.Mkdir(m.doomedDir(v.ID), 0o700)); err != nil {
		t.Fatal(err)
	}
	_ = m.Start(t.Context(), v.ID, false, &stages{}) // fails at the launch
	m.finishDeletes(t.Context())
	if _, err := m.Get(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

func TestAStartRefusesWhereADeleteLeftDisks(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v, _ := withDisk(t, m)
	if err := os.Rename(m.dir(v), m.doomedDir(v.ID)); err != nil {
		t.Fatal(err)
	}
	err := m.Start(t.Context(), v.ID, false, &stages{})
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != api.CodeConflict || !strings.Contains(p.Hint, "banger vm delete a") {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(m.doomedDir(v.ID)); err != nil || len(left) == 0 {
		t.Errorf("its disks: %v, %v", left, err)
	}
	m.finishDeletes(t.Context())
	if _, err := m.Get(t.Context(), "a"); err == nil {
		t.Error("the delete was not completed")
	}
}

// running makes a VM whose record says that it runs.
func running(t *testing.T, m *Manager) (v *store.VM, overlay string) {
	t.Helper()
	v, overlay = withDisk(t, m)
	v.State = api.StateRunning
	if err := m.Store.UpdateVM(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	return v, overlay
}

func TestADeleteWhoseKillFailsLeavesTheVM(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{fail: map[string]error{"kill": errors.New("nobody listens")}}, &fakeKernels{})
	v, overlay := running(t, m)
	if err := m.Delete(t.Context(), v.ID, true, &stages{}); err == nil || !strings.Contains(err.Error(), "nobody listens") {
		t.Errorf("error %v", err)
	}
	if now, err := m.Get(t.Context(), "a"); err != nil || now.ID != v.ID {
		t.Errorf("record %+v, %v", now, err)
	}
	if _, err := os.Lstat(overlay); err != nil {
		t.Error(err)
	}
	if left := m.Sweeping(); len(left) != 0 {
		t.Errorf("swept: %v", left)
	}
}

func TestARecordThatIsGoneIsSweptThoughTheVMMDoesNotDie(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir, &fakeHelper{}, &fakeKernels{})
	v, _ := running(t, m)
	gone := make(chan struct{})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrEnding)
	if err := awaitDeath(ctx, gone); !errors.Is(err, errDying) {
		t.Errorf("error %v", err)
	}
	if err := m.removeRecord(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if left := m.Sweeping(); !slices.Equal(left, []string{v.ID}) {
		t.Errorf("swept: %v", left)
	}
	done := false
	verdict := make(chan helper.Exit, 1)
	verdict <- helper.Exit{ID: v.ID}
	if err := os.Rename(m.dir(v), m.doomedDir(v.ID)); err != nil {
		t.Fatal(err)
	}
	m.sweepBehind(v.ID, end{gone: gone, verdict: verdict}, func() { done = true })
	wantNoFiles(t, dir)
	if err := m.Close(); err != nil || !done {
		t.Errorf("%v, done %v", err, done)
	}
}
