package vm

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"banger/internal/helper"
)

func TestOnlyACleanEndSparesTheCheck(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v, overlay := withDisk(t, m)
	verdict := func(result, status string) {
		raw, err := json.Marshal(helper.Exit{ID: v.ID, Result: result, Status: status})
		if err := errors.Join(err, os.WriteFile(filepath.Join(m.ExitDir, v.ID+".json"), raw, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(clean bool, why string) {
		t.Helper()
		if m.endedClean(v) != clean {
			t.Errorf("%s: clean is %t", why, !clean)
		}
	}
	verdict("success", "0")
	want(false, "a guest that was not asked to end")
	m.noteCleanEnd(v)
	want(true, "one that was, and agreed")
	verdict("signal", "KILL")
	want(false, "a VMM that was killed on the way")
	verdict("success", "0")
	if err := os.Chtimes(overlay, time.Now(), time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	want(false, "a disk that somebody wrote to")
	m.noteCleanEnd(v)
	if err := os.WriteFile(workDisk{m: m}.file(v.ID), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want(false, "a disk that is new")
	m.noteCleanEnd(v)
	want(true, "both disks")
	m.forgetCleanEnd(v.ID)
	want(false, "the run after the next")
}

func TestAKillThatFailsInTheMiddleIsAskedForAgain(t *testing.T) {
	h := &fakeHelper{fail: map[string]error{"begin kill": errors.New("banger-helper ended in the middle")}}
	m := open(t, t.TempDir(), h, &fakeKernels{})
	gone := make(chan struct{})
	if err := m.killVMM(t.Context(), "0123456789ab", end{gone: gone}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"begin kill", "kill"}; !slices.Equal(h.calls, want) {
		t.Errorf("verbs %v, want %v", h.calls, want)
	}
}
