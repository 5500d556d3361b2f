package kernel

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
)

// initrdFixture returns a kernel directory with two modules, and an agent.
func initrdFixture(t *testing.T) (dir, agent string) {
	t.Helper()
	dir = t.TempDir()
	agent = filepath.Join(t.TempDir(), "agent")
	if err := errors.Join(
		os.Mkdir(filepath.Join(dir, dirModules), 0o700),
		os.WriteFile(filepath.Join(dir, dirModules, "000-virtio_ring.ko"), []byte("ring"), 0o600),
		os.WriteFile(filepath.Join(dir, dirModules, "001-virtio.ko"), []byte("virtio module"), 0o600),
		os.WriteFile(agent, []byte("agent's bytes"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	return dir, agent
}

func TestBuildInitrd(t *testing.T) {
	dir, agent := initrdFixture(t)
	out := filepath.Join(dir, "initrd")
	if err := BuildInitrd(dir, agent, out); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := BuildInitrd(dir, agent, out); err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(out); err != nil || !bytes.Equal(first, second) {
		t.Errorf("the same input gave other bytes: %v", err)
	}
	want := []struct {
		name, data string
		mode       cpio.FileMode
	}{
		{"init", "agent's bytes", cpio.TypeReg | 0o755},
		{"modules", "", cpio.TypeDir | 0o755},
		{"modules/000-virtio_ring.ko", "ring", cpio.TypeReg | 0o644},
		{"modules/001-virtio.ko", "virtio module", cpio.TypeReg | 0o644},
		{"dev", "", cpio.TypeDir | 0o755},
		{"dev/console", "", cpio.TypeChar | 0o600},
	}
	r := cpio.NewReader(bytes.NewReader(first))
	for _, w := range want {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil || h.Name != w.name || string(data) != w.data || h.Mode != w.mode {
			t.Errorf("got %s %o %q (%v), want %+v", h.Name, h.Mode, data, err, w)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("more than expected: %v", err)
	}
}

// The reference reader must agree, down to the console's device number.
func TestInitrdReadByCpio(t *testing.T) {
	dir, agent := initrdFixture(t)
	out := filepath.Join(dir, "initrd")
	if err := BuildInitrd(dir, agent, out); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := exec.CommandContext(t.Context(), "cpio", "--quiet", "--numeric-uid-gid", "-tv")
	cmd.Stdin = in
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	list, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v\n%s", err, list)
	}
	var got []string
	for line := range strings.Lines(string(list)) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"-rwxr-xr-x 1 0 0 13 Jan 1 1970 init",
		"drwxr-xr-x 1 0 0 0 Jan 1 1970 modules",
		"-rw-r--r-- 1 0 0 4 Jan 1 1970 modules/000-virtio_ring.ko",
		"-rw-r--r-- 1 0 0 13 Jan 1 1970 modules/001-virtio.ko",
		"drwxr-xr-x 1 0 0 0 Jan 1 1970 dev",
		"crw------- 1 0 0 5, 1 Jan 1 1970 dev/console",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestBuildInitrdFails(t *testing.T) {
	dir, agent := initrdFixture(t)
	out := filepath.Join(dir, "initrd")
	if err := os.WriteFile(out, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ dir, agent string }{
		"no agent":        {dir, agent + "x"},
		"agent is dir":    {dir, dir},
		"no kernel":       {filepath.Join(dir, "nothing"), agent},
		"module is a dir": {filepath.Dir(dir), agent},
	} {
		if err := BuildInitrd(tc.dir, tc.agent, out); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if old, err := os.ReadFile(out); err != nil || string(old) != "old" {
		t.Errorf("a failure changed the initrd: %q, %v", old, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".initrd*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
