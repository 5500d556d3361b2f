package machine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func hashOf(text string) string { return textHash(text) }

func fill(dir string) error { return os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600) }

func TestCacheBuildsOnce(t *testing.T) {
	c := cache{t.TempDir()}
	var built atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			dir, err := c.entry(t.Context(), "kind", hashOf("a"), nil, func(dir string) error {
				built.Add(1)
				return fill(dir)
			})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if built.Load() != 1 {
		t.Errorf("built %d times", built.Load())
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	c := cache{t.TempDir()}
	boom := errors.New("boom")
	_, err := c.entry(t.Context(), "kind", hashOf("a"), nil, func(dir string) error {
		return errors.Join(fill(dir), boom)
	})
	if !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if left := entries(t, c); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// entries lists the cache without its locks.
func entries(t *testing.T, c cache) []string {
	t.Helper()
	list, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range list {
		if !strings.HasSuffix(d.Name(), ".lock") {
			names = append(names, d.Name())
		}
	}
	return names
}

func TestCacheForgets(t *testing.T) {
	c := cache{t.TempDir()}
	if err := os.MkdirAll(filepath.Join(c.dir, ".kind-left-by-a-killed-process"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(c.dir, "other-kind"), 0o700); err != nil {
		t.Fatal(err)
	}
	made := map[string]string{}
	for i, text := range []string{"a", "b", "c"} {
		dir, err := c.entry(t.Context(), "kind", hashOf(text), nil, fill)
		if err != nil {
			t.Fatal(err)
		}
		// The clock of a filesystem is coarse; say plainly which is older.
		when := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(dir, when, when); err != nil {
			t.Fatal(err)
		}
		made[text] = filepath.Base(dir)
	}
	got := strings.Join(entries(t, c), " ")
	for _, want := range []string{made["b"], made["c"], "other-kind"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is gone: %s", want, got)
		}
	}
	if strings.Contains(got, made["a"]) || strings.Contains(got, "killed") {
		t.Errorf("not forgotten: %s", got)
	}
}

func TestWaitingCanBeCancelled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := waitLock(t.Context(), path, func() { t.Error("nobody has it") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := waitLock(ctx, path, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	unlock()
	// The cancelled one must not keep the lock it was still waiting for.
	again, err := waitLock(t.Context(), path, func() {})
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestLinkOrCopy(t *testing.T) {
	dir := t.TempDir()
	old, name := filepath.Join(dir, "old"), filepath.Join(dir, "new")
	if err := os.WriteFile(old, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := linkOrCopy(t.Context(), old, name); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(old); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "content" {
		t.Errorf("got %q, %v", got, err)
	}
}
