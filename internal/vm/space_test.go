package vm

import (
	"errors"
	"os"
	"slices"
	"testing"

	"banger/api"
)

func TestLowSpacePausesAndRoomWakes(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v, vmm := inJail(t, m, "a")
	change := func(low bool) {
		t.Helper()
		m.low.Store(low)
		if err := m.spaceChanged(t.Context(), v.ID); err != nil {
			t.Fatal(err)
		}
	}
	change(false) // as when bangerd starts
	if len(vmm.states) > 0 {
		t.Errorf("with room from the start, Firecracker was told %v", vmm.states)
	}
	change(true)
	if got := wantState(t, m, "a", api.StatePaused); got.Reason != pausedForSpace {
		t.Errorf("reason %q", got.Reason)
	}
	change(false)
	wantState(t, m, "a", api.StateRunning)
	if want := []string{"Paused", "Resumed"}; !slices.Equal(vmm.states, want) {
		t.Errorf("Firecracker was told %v", vmm.states)
	}
	if _, err := os.Lstat(m.pauseMark(v.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark is left: %v", err)
	}
}

// A pause whose record did not fit leaves a mark, by which the next bangerd knows it.
func TestAnUnrecordedPauseIsMarked(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v, vmm := inJail(t, m, "a")
	if err := os.WriteFile(m.pauseMark(v.ID), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.spaceChanged(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(m.pauseMark(v.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark is left: %v", err)
	}
	if err := m.Store.Close(); err != nil { // nothing fits
		t.Fatal(err)
	}
	if err := m.pauseForSpace(t.Context(), v); err == nil {
		t.Error("it was recorded")
	}
	if want := []string{"Resumed", "Paused"}; !slices.Equal(vmm.states, want) {
		t.Errorf("Firecracker was told %v", vmm.states)
	}
	if _, err := os.Lstat(m.pauseMark(v.ID)); err != nil {
		t.Error(err)
	}
}
