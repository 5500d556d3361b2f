package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("a new store: %v", err)
	}
	// What a disk that failed could leave: a VM of an image that is not there.
	for _, q := range []string{"PRAGMA foreign_keys = 0",
		"INSERT INTO vms (id, created_at, name, state, reason, image_id, kernel_id, vcpu, memory_mib, slot, uid, started_at, host_boot, timing, guest) VALUES ('a', 0, 'a', 'created', '', 'gone', 'gone', 1, 128, 0, 0, 0, '', '', '')",
		"PRAGMA foreign_keys = 1"} {
		if _, err := s.db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "not there") {
		t.Errorf("a broken reference: %v", err)
	}
	if _, err := s.db.ExecContext(t.Context(), "DELETE FROM vms; PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(raw) / 2; i < len(raw); i++ { // the first pages hold the schema, without which it would not open
		raw[i] = 0xff
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), path); err != nil {
		return // so much is seen at once
	}
	defer s.Close()
	if err := s.Check(t.Context()); err == nil {
		t.Error("half of the pages are garbage, and it is said to be whole")
	}
}
