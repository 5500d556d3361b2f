package store

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/api"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "banger.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func fill(ctx context.Context, t *testing.T, s *Store) {
	t.Helper()
	at := time.Unix(1700000000, 42).UTC()
	for _, err := range []error{
		s.InsertImage(ctx, &Image{ID: "i1", Name: "debian", Size: 1, DiskBytes: 2, Files: 3, ImportedAt: at}),
		s.InsertKernel(ctx, &Kernel{ID: "k1", Name: "host", Release: "6.1", Modules: []string{"virtio"}, ImportedAt: at}),
		s.InsertVM(ctx, sample("0123456789ab", "one")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func sample(id, name string) *VM {
	return &VM{ID: id, Name: name, State: api.StateCreated, ImageID: "i1", KernelID: "k1", VCPU: 1, MemoryMiB: 256, Slot: -1,
		CreatedAt: time.Unix(1700000000, 1).UTC()}
}

func TestVMRoundTripAndReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	fill(t.Context(), t, s)
	v, err := s.VM(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	v.State, v.Reason, v.Slot, v.UID = api.StateFailed, "killed", 4, 200004
	v.Timing = json.RawMessage(`[{"phase":"preflight","milliseconds":1.5}]`)
	v.Guest = &api.Guest{BootID: "b", Kernel: "6.1"}
	v.DiskBytes, v.NAT, v.Network, v.Autostart, v.IdleStop = 1<<30, true, "lan", true, 60
	v.Restart, v.Stale, v.Ephemeral = api.RestartAlways, []string{"vcpu"}, true
	v.CPUWeight, v.IOWeight, v.CPULimit, v.IOLimit = 50, 200, 1500, 1<<40
	v.StartedAt = time.Unix(1700000001, 0).UTC()
	if err := s.UpdateVM(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := s.VM(t.Context(), "0123")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(v, got); d != "" {
		t.Error(d)
	}
	if got.ImageName != "debian" || got.KernelName != "host" {
		t.Errorf("joined names: %q %q", got.ImageName, got.KernelName)
	}
}

func TestReferences(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	fill(ctx, t, s)
	for _, v := range []*VM{sample("012399999999", "two"), sample("abcdabcdabcd", "0123")} {
		if err := s.InsertVM(ctx, v); err != nil {
			t.Fatal(err)
		}
	}
	for ref, want := range map[string]string{
		"one": "one", "0123456789ab": "one", "01234": "one", "0123": "0123", "abcd": "0123",
	} {
		if v, err := s.VM(ctx, ref); err != nil || v.Name != want {
			t.Errorf("VM(%q) = %v, %v; want %s", ref, v, err, want)
		}
	}
	for _, ref := range []string{"", "abc", "ffff", "o%", "gggg"} {
		if _, err := s.VM(ctx, ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("VM(%q): %v, want not found", ref, err)
		}
	}
	if v, err := s.VMByID(ctx, "abcdabcdabcd"); err != nil || v.Name != "0123" {
		t.Errorf("by id: %v, %v", v, err)
	}
	if _, err := s.VMByID(ctx, "0123"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a name or a part is no id: %v", err)
	}
	if err := s.InsertVM(ctx, sample("012388888888", "three")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.VM(ctx, "01238"); err != nil {
		t.Error(err)
	}
	if err := s.DeleteVM(ctx, "abcdabcdabcd"); err != nil {
		t.Fatal(err)
	}
	if p, ok := errors.AsType[*api.Problem](second(s.VM(ctx, "0123"))); !ok || p.Code != "ambiguous" {
		t.Errorf("ambiguous prefix: %v", p)
	}
}

func second[T any](_ T, err error) error { return err }

func TestConstraints(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	fill(ctx, t, s)
	if err := s.InsertVM(ctx, sample("ffffffffffff", "one")); !errors.Is(err, ErrExists) {
		t.Errorf("same name: %v", err)
	}
	if err := s.DeleteImage(ctx, "i1"); !errors.Is(err, ErrInUse) {
		t.Errorf("image in use: %v", err)
	}
	if err := s.DeleteKernel(ctx, "k1"); !errors.Is(err, ErrInUse) {
		t.Errorf("kernel in use: %v", err)
	}
	images, err := s.Images(ctx)
	if err != nil || len(images) != 1 || len(images[0].UsedBy) != 1 {
		t.Errorf("images: %+v, %v", images, err)
	}
	if err := s.DeleteVM(ctx, "0123456789ab"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteVM(ctx, "0123456789ab"); !errors.Is(err, ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
	if err := s.DeleteImage(ctx, "i1"); err != nil {
		t.Error(err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.ExecContext(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(t.Context(), path); err == nil {
		_ = s.Close()
		t.Fatal("a newer schema was accepted")
	}
}
