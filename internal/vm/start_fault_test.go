//go:build faults

package vm

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/fault"
)

// A start whose step stands still ends with its time: the error names the step,
// and all before it is undone.
func TestStartThatStandsStill(t *testing.T) {
	fault.Dir = t.TempDir()
	for _, step := range []string{"preflight", "dm_snapshot", "firecracker_binary"} {
		h := &fakeHelper{}
		m := open(t, t.TempDir(), h, &fakeKernels{})
		m.StartTimeout = 300 * time.Millisecond
		v, err := m.Create(t.Context(), api.VMSpec{Name: "a"})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(fault.Dir, "start."+step), []byte(fault.Stall), 0o600); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		err = m.Start(t.Context(), v.ID, false, &stages{})
		if took := time.Since(begun); took < m.StartTimeout {
			t.Errorf("%s: it did not stand still: %s", step, took)
		}
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || !strings.Contains(p.Detail, "it took longer than start_timeout (300ms) ("+step+": ") || p.Hint == "" {
			t.Errorf("%s: %v (%+v)", step, err, p)
		}
		if got, err := m.Get(t.Context(), "a"); err != nil || got.State != api.StateFailed || got.Reason != p.Detail {
			t.Errorf("%s: record %+v, %v", step, got, err)
		}
		undone := !slices.Contains(h.calls, "attach") || h.calls[len(h.calls)-1] == "cleanup"
		if _, err := os.Stat(filepath.Join(m.dir(v), "overlay.cow")); err == nil || !undone {
			t.Errorf("%s: it is not undone: %v", step, h.calls)
		}
		if err := m.Start(t.Context(), v.ID, false, &stages{}); err == nil || strings.Contains(err.Error(), "start_timeout") {
			t.Errorf("%s: the next start does not get further: %v", step, err)
		}
	}
}
