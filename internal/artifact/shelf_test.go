package artifact

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/store"
)

func free() error  { return store.ErrNotFound }
func taken() error { return nil }
func ok(context.Context, string) error {
	return nil
}

func write(_ context.Context, dir string) error {
	return os.WriteFile(filepath.Join(dir, "content"), []byte("x"), 0o600)
}

func entries(t *testing.T, dir string) int {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

func TestImportPublishesOnlyWhatIsComplete(t *testing.T) {
	boom := func(context.Context, string) error { return errors.New("boom") }
	for name, tc := range map[string]struct {
		name         string
		taken        func() error
		fill, record func(context.Context, string) error
		left         int
	}{
		"good":        {"debian", free, write, ok, 1},
		"bad name":    {"../x", free, write, ok, 0},
		"upper case":  {"Debian", free, write, ok, 0},
		"empty name":  {"", free, write, ok, 0},
		"name taken":  {"debian", taken, write, ok, 0},
		"store fails": {"debian", func() error { return errors.New("disk") }, write, ok, 0},
		"fill fails":  {"debian", free, boom, ok, 0},
		"not stored":  {"debian", free, write, boom, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := shelf{Dir: t.TempDir(), Kind: "image"}
			err := s.Import(t.Context(), tc.name, tc.taken, tc.fill, tc.record)
			if (err == nil) != (tc.left == 1) {
				t.Errorf("error %v", err)
			}
			if n := entries(t, s.Dir); n != tc.left {
				t.Errorf("%d directories left, want %d", n, tc.left)
			}
		})
	}
}

func TestSecondImportOfANameIsRefusedAtOnce(t *testing.T) {
	s := shelf{Dir: t.TempDir(), Kind: "image"}
	err := s.Import(t.Context(), "a", free, func(context.Context, string) error {
		if err := s.Import(t.Context(), "a", free, write, ok); err == nil {
			t.Error("the second import was let in")
		}
		return s.Import(t.Context(), "b", free, write, ok)
	}, ok)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Import(t.Context(), "a", free, write, ok); err != nil {
		t.Errorf("the name was not given back: %v", err)
	}
}

func TestSweepRemovesOnlyWhatWasNeverFinished(t *testing.T) {
	s := shelf{Dir: t.TempDir(), Kind: "image"}
	var id string
	if err := s.Import(t.Context(), "a", free, write, func(_ context.Context, i string) error { id = i; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{staging + "123", "0123456789ab", "0123456789ac"} {
		if err := os.Mkdir(filepath.Join(s.Dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// An import or a delete that was cut off, on either side of the record.
	for _, d := range []string{id, "0123456789ac"} {
		if err := os.WriteFile(filepath.Join(s.Dir, d, unrecorded), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sweep(t.Context(), slog.New(slog.DiscardHandler), map[string]bool{id: true}); err != nil {
		t.Fatal(err)
	}
	if n := entries(t, s.Dir); n != 2 { // the known, and what may be somebody's only copy
		t.Errorf("%d directories left", n)
	}
	if n := entries(t, s.Path(id)); n != 1 {
		t.Errorf("the known one has %d entries", n)
	}
}
