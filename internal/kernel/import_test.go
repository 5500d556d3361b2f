package kernel

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"banger/api"
)

// modulesTree writes what /lib/modules/RELEASE holds and returns the path.
func modulesTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, data []byte) {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(fileDep, []byte(debianDep))
	put(fileBuiltin, []byte(debianBuiltin))
	put("modules.alias", []byte("alias"))
	for line := range strings.Lines(debianDep) {
		file, _, _ := strings.Cut(line, ":")
		m, err := moduleOf(file)
		if err != nil {
			t.Fatal(err)
		}
		put(file, fakeModule(m.name, testRelease))
	}
	if err := os.Symlink("/usr/src", filepath.Join(dir, "build")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func kernelFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(file, bzImage(compressors["zstd"](t, fakeELF())), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestPackImport(t *testing.T) {
	var archive bytes.Buffer
	if err := Pack(t.Context(), &archive, kernelFile(t), modulesTree(t)); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(archive.Bytes(), []byte("fuse.ko\x00")) {
		t.Error("a module nobody needs was packed")
	}
	dir := t.TempDir()
	info, err := Import(t.Context(), &archive, dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Release != testRelease || info.MinMemoryMiB != 40+headroomMiB || !slices.Equal(info.Modules, debianOrder) {
		t.Errorf("got %+v", info)
	}
	var saved Info
	raw, err := os.ReadFile(filepath.Join(dir, fileInfo))
	if err != nil || json.Unmarshal(raw, &saved) != nil || saved.SHA256 != info.SHA256 {
		t.Errorf("saved %s, %v", raw, err)
	}
	if elf, err := os.ReadFile(filepath.Join(dir, fileKernel)); err != nil || !bytes.Equal(elf, fakeELF()) {
		t.Errorf("vmlinux differs: %v", err)
	}
	var got []string
	entries, err := os.ReadDir(filepath.Join(dir, dirModules))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		_, name, _ := strings.Cut(strings.TrimSuffix(e.Name(), ".ko"), "-")
		got = append(got, name)
	}
	if !slices.Equal(got, debianOrder) {
		t.Errorf("on disk: %v", got)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 3 {
		t.Errorf("the directory holds %v, %v", left, err)
	}
}

func TestPackWithoutModules(t *testing.T) {
	var archive bytes.Buffer
	if err := Pack(t.Context(), &archive, kernelFile(t), ""); err != nil {
		t.Fatal(err)
	}
	info, err := Import(t.Context(), &archive, t.TempDir())
	if err != nil || len(info.Modules) != 0 {
		t.Errorf("got %+v, %v", info, err)
	}
}

func TestPackRefuses(t *testing.T) {
	file := kernelFile(t)
	leaving := modulesTree(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	virtio := filepath.Join(leaving, "kernel/drivers/virtio/virtio.ko")
	if err := errors.Join(os.Remove(virtio), os.Symlink(secret, virtio)); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx           context.Context
		file, modules string
		want          string
	}{
		"no kernel":      {t.Context(), filepath.Join(leaving, "nothing"), "", "no such file"},
		"directory":      {t.Context(), leaving, "", "no regular file"},
		"no modules":     {t.Context(), file, t.TempDir(), "is no modules directory"},
		"link leads out": {t.Context(), file, leaving, "cannot read module virtio"},
		"cancelled":      {cancelled, file, "", "canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Pack(tc.ctx, io.Discard, tc.file, tc.modules)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestImportRefuses(t *testing.T) {
	kernel := member{name: "kernel", data: fakeELF()}
	dep := member{name: "modules/modules.dep", data: []byte(debianDep)}
	builtin := member{name: "modules/modules.builtin", data: []byte(debianBuiltin)}
	foreign := []member{kernel, dep, builtin}
	for line := range strings.Lines(debianDep) {
		file, _, _ := strings.Cut(line, ":")
		foreign = append(foreign, member{name: "modules/" + file, data: fakeModule("x", "5.10.0-1")})
	}
	silent := bytes.ReplaceAll(fakeELF(), banner, []byte("Linux vrsion!! "))
	whole := tarOf(t, kernel)
	for name, tc := range map[string]struct {
		archive []byte
		want    string
	}{
		"empty":           {nil, "holds no kernel"},
		"no kernel":       {tarOf(t, dep), "holds no kernel"},
		"no tar":          {bytes.Repeat([]byte("hello "), 1000), "damaged or truncated"},
		"truncated":       {whole[:len(whole)/2], "damaged or truncated"},
		"two kernels":     {tarOf(t, kernel, kernel), "unexpected member"},
		"climbing":        {tarOf(t, kernel, member{name: "modules/../../x.ko"}), "impossible member"},
		"absolute":        {tarOf(t, member{name: "/kernel", data: fakeELF()}), "impossible member"},
		"kernel is link":  {tarOf(t, member{name: "kernel", kind: tar.TypeSymlink}), "unexpected member"},
		"foreign member":  {tarOf(t, kernel, member{name: "etc/passwd", data: []byte("x")}), "unexpected member"},
		"modules is file": {tarOf(t, kernel, member{name: "modules", data: []byte("x")}), "unexpected member"},
		"no such module":  {tarOf(t, kernel, dep, builtin), "lacks the module"},
		"other kernel's":  {tarOf(t, foreign...), "was made for kernel"},
		"module twice":    {tarOf(t, kernel, member{name: "modules/a.ko"}, member{name: "modules/a.ko"}), "twice"},
		"link as module": {tarOf(t, kernel, dep, builtin,
			member{name: "modules/kernel/drivers/virtio/virtio_ring.ko", kind: tar.TypeSymlink}), "lacks the module"},
		"no release": {tarOf(t, member{name: "kernel", data: silent}), "which Linux version"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := Import(t.Context(), bytes.NewReader(tc.archive), dir)
			var p *api.Problem
			if !errors.As(err, &p) || !strings.Contains(p.Detail, tc.want) {
				t.Errorf("got %v, want a problem with %q", err, tc.want)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// A tree packed by hand has its list behind the modules, directories and links.
func TestImportPlainTree(t *testing.T) {
	members := []member{{name: "./"}, {name: "./kernel", data: fakeELF()}, {name: "./modules/"},
		{name: "./modules/build", kind: tar.TypeSymlink}, {name: "./modules/modules.alias", data: []byte("x")}}
	members[0].kind, members[2].kind = tar.TypeDir, tar.TypeDir
	for line := range strings.Lines(debianDep) {
		file, _, _ := strings.Cut(line, ":")
		members = append(members, member{name: "./modules/" + file, data: fakeModule("x", testRelease)})
	}
	members = append(members, member{name: "./modules/modules.dep", data: []byte(debianDep)},
		member{name: "./modules/modules.builtin", data: []byte(debianBuiltin)})
	info, err := Import(t.Context(), bytes.NewReader(tarOf(t, members...)), t.TempDir())
	if err != nil || !slices.Equal(info.Modules, debianOrder) {
		t.Errorf("got %+v, %v", info, err)
	}
}

func TestImportBlamesTheRightOne(t *testing.T) {
	var p *api.Problem
	broken := errors.New("connection lost")
	half := io.MultiReader(bytes.NewReader(tarOf(t, member{name: "kernel", data: fakeELF()})[:5000]), iotest.ErrReader(broken))
	if _, err := Import(t.Context(), half, t.TempDir()); !errors.Is(err, broken) || errors.As(err, &p) {
		t.Errorf("a lost connection: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Import(ctx, bytes.NewReader(nil), t.TempDir()); !errors.Is(err, context.Canceled) || errors.As(err, &p) {
		t.Errorf("cancelled: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Import(t.Context(), bytes.NewReader(nil), dir); err == nil {
		t.Error("a directory with something in it was used")
	}
	if _, err := os.Stat(filepath.Join(dir, "precious")); err != nil {
		t.Error(err)
	}
}

func FuzzImport(f *testing.F) {
	f.Add(tarOf(f, member{name: "kernel", data: fakeELF()[:9000]}, member{name: "modules/modules.dep", data: []byte("k/virtio_mmio.ko:\n")},
		member{name: "modules/k/virtio_mmio.ko", data: fakeModule("virtio_mmio", testRelease)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "k")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := Import(t.Context(), bytes.NewReader(b), dir)
		if entries, rerr := os.ReadDir(parent); rerr != nil || len(entries) != 1 {
			t.Errorf("something was written outside: %v, %v", entries, rerr)
		}
		if entries, rerr := os.ReadDir(dir); rerr != nil || err != nil && len(entries) > 0 {
			t.Errorf("left behind: %v, %v", entries, rerr)
		}
	})
}
