package disk

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
)

func problem(err error) string {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Code
	}
	if err != nil {
		return "no problem: " + err.Error()
	}
	return ""
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// only fails if there is anything else in the file's directory.
func only(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("there is %q, want %q", got, names)
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := findTool(name)
	if err != nil {
		t.Skip(err)
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

func TestMakeWork(t *testing.T) {
	for name, size := range map[string]int64{"smallest": Smallest, "odd": 100<<20 + 4096, "large": 64 << 30} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "work.ext4")
			if _, err := findTool("mke2fs"); err != nil {
				t.Skip(err)
			}
			if err := os.WriteFile(path+".new", []byte("from a crash"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := MakeWork(t.Context(), path, size); err != nil {
				t.Fatal(err)
			}
			only(t, dir, "work.ext4")
			info, err := os.Stat(path)
			if err != nil || info.Size() != size || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", info, err)
			}
			if used := blocks(t, path); used > 32<<20+size>>13 {
				t.Errorf("it takes %d KiB", used>>10)
			}
			said := tool(t, "dumpe2fs", "-h", path)
			for _, want := range []string{"Filesystem volume name:   work", "Reserved block count:     0", "clean", "resize_inode"} {
				if !strings.Contains(said, want) {
					t.Errorf("no %q in\n%s", want, said)
				}
			}
			if size < 1<<30 {
				tool(t, "e2fsck", "-fn", path)
			}
			if err := MakeWork(t.Context(), path, size); !errors.Is(err, fs.ErrExist) {
				t.Errorf("again: %v", err)
			}
			only(t, dir, "work.ext4")
		})
	}
}

func TestMakeWorkFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "work.ext4")
	for _, size := range []int64{-1, 0, Smallest - 4096, Smallest + 1, Largest + 4096} {
		if err := MakeWork(t.Context(), path, size); problem(err) != api.CodeBadRequest {
			t.Errorf("%d: %v", size, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := findTool("mke2fs"); err == nil {
		if err := MakeWork(ctx, path, Smallest); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
	if err := MakeWork(t.Context(), filepath.Join(dir, "none/work"), Smallest); err == nil {
		t.Error("no directory")
	}
	only(t, dir)
	t.Setenv("PATH", "/nowhere")
	if _, err := findTool("no-such-tool"); problem(err) != api.CodePrerequisite {
		t.Error(err)
	}
}

func TestGrow(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "work")
	want := []byte(strings.Repeat("keep", 1024))
	if err := errors.Join(os.WriteFile(path, want, 0o600), os.Truncate(path, Smallest)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		size int64
		code string
		is   int64
	}{
		{Smallest, "", Smallest},
		{1 << 40, "", 1 << 40},
		{1 << 39, api.CodeBadRequest, 1 << 40},
		{1<<40 + 1, api.CodeBadRequest, 1 << 40},
		{0, api.CodeBadRequest, 1 << 40},
	} {
		err := Grow(path, tt.size)
		info, statErr := os.Stat(path)
		if statErr != nil || problem(err) != tt.code || info.Size() != tt.is {
			t.Errorf("%+v: %v, %v, %v", tt, err, info, statErr)
		}
	}
	if used := blocks(t, path); used > 64<<10 {
		t.Errorf("it takes %d bytes", used)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("content changed: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{link, dir, filepath.Join(dir, "none")} {
		if err := Grow(bad, 2<<40); err == nil {
			t.Errorf("%s was grown", bad)
		}
	}
}

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	const size = 256<<20 + 4096
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dice := rand.New(rand.NewPCG(1, 2))
	written := map[int64][]byte{}
	for _, at := range []int64{0, 4096, 1 << 20, 100<<20 + 512, size - 4096} { // also at both ends
		b := make([]byte, 8192)
		for i := range b {
			b[i] = byte(dice.Uint32()) | 1
		}
		b = b[:min(int64(len(b)), size-at)]
		written[at] = b
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := Copy(t.Context(), to, from); err != nil {
		t.Fatal(err)
	}
	only(t, dir, "a", "b")
	if !bytes.Equal(sum(t, from), sum(t, to)) {
		t.Error("the copy differs")
	}
	if a, b := blocks(t, from), blocks(t, to); b > a+64<<10 {
		t.Errorf("the copy takes %d bytes, the original %d", b, a)
	}
	if err := Copy(t.Context(), to, from); !errors.Is(err, fs.ErrExist) {
		t.Errorf("again: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Sharing blocks takes no time, so that it is not cancelled.
	if err := Copy(ctx, filepath.Join(dir, "c"), from); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	} else if err != nil {
		only(t, dir, "a", "b")
	}
	if err := Copy(t.Context(), filepath.Join(dir, "d"), dir); err == nil {
		t.Error("a directory was copied")
	}
	empty := filepath.Join(dir, "e")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Copy(t.Context(), filepath.Join(dir, "f"), empty); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}

// sum is the file's content, holes and all, but short: blocks that are not zero.
func sum(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	zero := make([]byte, 4096)
	out := []byte{}
	for at := 0; at < len(raw); at += 4096 {
		if b := raw[at:min(at+4096, len(raw))]; !bytes.Equal(b, zero[:len(b)]) {
			out = append(append(out, byte(at>>12), byte(at>>20), byte(at>>28)), b...)
		}
	}
	return out
}

// Also where the filesystem of the tests can share blocks.
func TestCopyWithoutClone(t *testing.T) {
	dir := t.TempDir()
	src, err := os.Create(filepath.Join(dir, "src"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(filepath.Join(dir, "dst"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	const size = 3*step + 4096 // more than a step of data in one piece
	if _, err := src.Write(bytes.Repeat([]byte("0123456789abcdef"), size/16)); err != nil {
		t.Fatal(err)
	}
	if err := copyData(t.Context(), dst, src, size); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sum(t, src.Name()), sum(t, dst.Name())) {
		t.Error("the copy differs")
	}
	// The source became shorter: that is no copy.
	if err := errors.Join(src.Truncate(step), dst.Truncate(0)); err != nil {
		t.Fatal(err)
	}
	if err := copyRange(t.Context(), dst, src, 0, size); err == nil {
		t.Error("half of it was called a copy")
	}
}
