//go:build faults

package fault

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func want(t *testing.T, what string) (reached string) {
	t.Helper()
	Dir = t.TempDir()
	file := filepath.Join(Dir, "here")
	if err := os.WriteFile(file, []byte(what), 0o600); err != nil {
		t.Fatal(err)
	}
	return file + ".reached"
}

func TestPoint(t *testing.T) {
	for what, is := range map[string]error{Full: unix.ENOSPC, Late: context.DeadlineExceeded} {
		want(t, what)
		if err := Point(t.Context(), "here"); !errors.Is(err, is) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, what := range []string{Error, "nonsense"} {
		want(t, what)
		if err := Point(t.Context(), "elsewhere"); err != nil {
			t.Errorf("another point: %v", err)
		}
		if Point(t.Context(), "here") == nil {
			t.Errorf("%s: no error", what)
		}
		if err := Point(t.Context(), "here"); err != nil {
			t.Errorf("%s, a second time: %v", what, err)
		}
	}
}

// A step that stands still ends by what bounds it, deadline or not, and has
// failed even if the test lets it go.
func TestStandsStill(t *testing.T) {
	for _, what := range []string{Hold, Stall} {
		reached := want(t, what)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- Point(ctx, "here") }()
		wait(t, reached)
		select {
		case err := <-ended:
			t.Fatalf("%s: it did not stand still: %v", what, err)
		case <-time.After(20 * time.Millisecond): // longer than its own look
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, fails := range map[string]bool{Hold: false, Stall: true} {
		reached := want(t, what)
		ended := make(chan error, 1)
		go func() { ended <- Point(t.Context(), "here") }()
		wait(t, reached)
		if err := os.Remove(reached); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; (err != nil) != fails {
			t.Errorf("%s, let go: %v", what, err)
		}
	}
}

func wait(t *testing.T, file string) {
	t.Helper()
	for {
		if _, err := os.Lstat(file); err == nil {
			return
		}
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(file + " does not come")
		}
	}
}
