package vm

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/disk"
)

// A start refuses what doctor calls a failure, in the same words.
func TestChecksBeforeAStart(t *testing.T) {
	for id, c := range map[string]struct {
		spoil func(m *Manager) error
		look  func(m *Manager) api.Check
		code  string
		says  string
	}{
		"space":        {func(m *Manager) error { m.Reserve = 1 << 62; return nil }, (*Manager).room, api.CodeNoSpace, "too few for what VMs write"},
		"jail-parents": {func(m *Manager) error { return os.Chmod(m.JailDir, 0o777) }, (*Manager).jailParents, api.CodePrerequisite, "only root can write"},
		"binaries":     {func(m *Manager) error { return os.Chmod(m.Record.Firecracker, 0o644) }, (*Manager).binaries, api.CodePrerequisite, "is not a program"},
	} {
		m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
		if got := c.look(m); got.Status != api.CheckPass || got.ID != id || got.Fix != "" {
			t.Errorf("%s of a good host: %+v", id, got)
		}
		if err := refuse(412, c.code, c.look(m)); err != nil {
			t.Errorf("%s of a good host: %v", id, err)
		}
		if err := c.spoil(m); err != nil {
			t.Fatal(err)
		}
		all := m.Checks(t.Context())
		i := slices.IndexFunc(all, func(c api.Check) bool { return c.ID == id })
		if i < 0 || all[i].Status != api.CheckFail || !strings.Contains(all[i].Found, c.says) {
			t.Errorf("%s: %+v", id, all)
		}
		p, ok := errors.AsType[*api.Problem](refuse(412, c.code, all[i]))
		if !ok || p.Code != c.code || p.Detail != all[i].Found || p.Hint == "" {
			t.Errorf("%s refuses with %+v", id, p)
		}
	}
}

func TestLittleRoomIsAWarning(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	free, err := disk.Free(m.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	m.Reserve = free / (plenty - 2)
	if got := m.room(); got.Status != api.CheckWarn || refuse(507, api.CodeNoSpace, got) != nil {
		t.Errorf("%+v", got)
	}
	m.Reserve = 1
	if got := m.room(); got.Status != api.CheckPass {
		t.Errorf("%+v", got)
	}
	m.low.Store(true)
	if got := m.room(); got.Status != api.CheckFail {
		t.Errorf("while VMs are paused for it: %+v", got)
	}
}

func TestClearLeftover(t *testing.T) {
	h := &fakeHelper{}
	m := open(t, t.TempDir(), h, &fakeKernels{})
	v, err := m.Create(t.Context(), api.VMSpec{Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	h.calls = nil
	if err := m.ClearLeftover(t.Context(), v.ID); err == nil || len(h.calls) > 0 {
		t.Errorf("of a VM that exists: %v, %v", err, h.calls)
	}
	if err := m.ClearLeftover(t.Context(), "../x"); err == nil || len(h.calls) > 0 {
		t.Errorf("of no VM: %v, %v", err, h.calls)
	}
	const id = "abcdefabcdef"
	dir := filepath.Join(m.StateDir, "vms", id)
	for _, d := range []string{dir, m.doomedDir(id) + "/disk"} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.ClearLeftover(t.Context(), id); err != nil || !slices.Equal(h.calls, []string{"kill", "cleanup", "release"}) {
		t.Errorf("%v, %v", err, h.calls)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("files are a person's to remove: %v", err)
	}
	if _, err := os.Stat(m.doomedDir(id)); err == nil {
		t.Error("what a delete had begun is left")
	}
	h.calls, h.fail = nil, map[string]error{"kill": errors.New("no")}
	if err := m.ClearLeftover(t.Context(), id); err == nil || slices.Contains(h.calls, "release") {
		t.Errorf("a VMM that cannot be killed: %v, %v", err, h.calls)
	}
}
