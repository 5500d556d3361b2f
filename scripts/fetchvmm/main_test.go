package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// known replaces the sums by those of small stand-ins and returns a directory
// that holds these.
func known(t *testing.T) string {
	t.Helper()
	dir, real := t.TempDir(), sums
	t.Cleanup(func() { sums = real })
	sums = map[string]string{}
	for name := range real {
		sum := sha256.Sum256([]byte("the " + name))
		sums[name] = hex.EncodeToString(sum[:])
		write(t, filepath.Join(dir, name), "the "+name)
	}
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestInstall(t *testing.T) {
	from, to := known(t), filepath.Join(t.TempDir(), "bin")
	if err := install(from, to); err != nil {
		t.Fatal(err)
	}
	for name := range sums {
		info, err := os.Stat(filepath.Join(to, name))
		if err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	write(t, filepath.Join(to, "jailer"), "harmed")
	if err := install(from, to); err != nil {
		t.Fatal(err)
	}
	if err := check(to); err != nil {
		t.Errorf("a harmed program was not mended: %v", err)
	}
}

func TestForeignProgramsAreRefused(t *testing.T) {
	from, to := known(t), t.TempDir()
	write(t, filepath.Join(from, "jailer"), "another jailer")
	err := install(from, to)
	if err == nil || !strings.Contains(err.Error(), "jailer") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(to, "jailer")); err == nil {
		t.Error("it was installed all the same")
	}
}

func TestDirectoryOfTheUser(t *testing.T) {
	dir, out := known(t), t.TempDir()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("FIRECRACKER_DIR", dir)
	if err := run(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	if err := check(out); err != nil {
		t.Error(err)
	}
	// Once known, they are taken from the cache.
	t.Setenv("FIRECRACKER_DIR", "")
	if err := run(t.Context(), t.TempDir()); err != nil {
		t.Error(err)
	}
	t.Setenv("FIRECRACKER_DIR", t.TempDir())
	if err := run(t.Context(), out); err == nil {
		t.Error("an empty directory of the user's was passed over")
	}
}

func TestOnlyTheTwoAreKept(t *testing.T) {
	known(t)
	dir := t.TempDir()
	for name, want := range map[string]bool{"jailer": true, "README.md": false, "..": false, "": false} {
		if err := keep(dir, name, strings.NewReader("x")); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(dir, name, "")); want != (err == nil) && name != ".." && name != "" {
			t.Errorf("%q kept: %v", name, err == nil)
		}
	}
}
