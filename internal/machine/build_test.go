package machine

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/api"
)

func TestHostSources(t *testing.T) {
	const bookworm, ubuntu = "NAME=x\nVERSION_CODENAME=bookworm\n", "VERSION_CODENAME=noble\n"
	const list, deb822 = "etc/apt/sources.list", "etc/apt/sources.list.d/debian.sources"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"deb822":        {map[string]string{"etc/os-release": bookworm, deb822: "Types: deb\nURIs: x\n"}, deb822},
		"list":          {map[string]string{"etc/os-release": bookworm, list: "# old\ndeb x bookworm main\n"}, list},
		"both":          {map[string]string{"etc/os-release": bookworm, list: "deb x y z\n", deb822: "URIs: x\n"}, deb822},
		"from a disc":   {map[string]string{"etc/os-release": bookworm, list: "deb cdrom:[x]/ y z\ndeb x y z\n"}, ""},
		"only remarks":  {map[string]string{"etc/os-release": bookworm, list: "# deb x y z\n\n"}, ""},
		"other release": {map[string]string{"etc/os-release": ubuntu, list: "deb x noble main\n"}, ""},
		"nothing":       {nil, ""},
	} {
		root := t.TempDir()
		for file, text := range c.files {
			path := filepath.Join(root, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got := hostSources(root)
		if c.want != "" {
			c.want = filepath.Join(root, c.want)
		}
		if got != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestOverlayIsRoots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "overlay.tar")
	if err := writeOverlay(path); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := map[string]bool{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if want := int64(0o644); h.Uid != 0 || h.Gid != 0 || h.Typeflag == tar.TypeReg && h.Mode != want {
			t.Errorf("%s: uid %d, gid %d, mode %o", h.Name, h.Uid, h.Gid, h.Mode)
		}
		seen[h.Name] = true
	}
	for _, want := range []string{"etc/", "etc/nftables.conf", "etc/systemd/system/banger-machine-ready.service"} {
		if !seen[want] {
			t.Errorf("%s is missing", want)
		}
	}
}

// programDir makes a directory with a stand-in for each program.
func programDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range programs {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("I am "+name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBinaries(t *testing.T) {
	dir := programDir(t)
	b, err := findBinaries(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	own := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(own, []byte("I am a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeTar(&out, b, guestKernel{path: own}); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(&out)
	for _, name := range programs {
		h, err := r.Next()
		if err != nil || h.Name != name || h.Mode != 0o755 {
			t.Fatalf("%s: %+v, %v", name, h, err)
		}
		if content, err := io.ReadAll(r); err != nil || string(content) != "I am "+name {
			t.Errorf("%s holds %q, %v", name, content, err)
		}
	}
	if h, err := r.Next(); err != nil || h.Name != guestKernelFile || h.Mode != 0o644 {
		t.Errorf("the kernel: %+v, %v", h, err)
	}
	for _, name := range programs {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("I am another "+name), 0o755); err != nil {
			t.Fatal(err)
		}
		changed, err := findBinaries(dir)
		if err != nil || changed.hash == b.hash {
			t.Errorf("another %s, the same hash (%v)", name, err)
		}
		b = changed
	}
	if err := os.Remove(filepath.Join(dir, "jailer")); err != nil {
		t.Fatal(err)
	}
	_, err = findBinaries(dir)
	wantCode(t, err, api.CodeNotFound)
}

func TestSizes(t *testing.T) {
	var none binaries
	r, err := InitOptions{}.record(none)
	if err != nil || r.cpus(accelKVM) < 1 || r.cpus(accelTCG) != 1 || r.MemoryMiB < minMemoryMiB {
		t.Errorf("by default: %+v, %v", r, err)
	}
	for name, o := range map[string]InitOptions{
		"no CPU": {CPUs: -1}, "many CPUs": {CPUs: 100000}, "little memory": {MemoryMiB: 64}, "negative memory": {MemoryMiB: -1},
	} {
		_, err := o.record(none)
		t.Run(name, func(t *testing.T) { wantCode(t, err, api.CodeBadRequest) })
	}
}

func TestToolSaysWhatWentWrong(t *testing.T) {
	err := runTool(t.Context(), command{argv: []string{"sh", "-c", "echo the reason >&2; exit 3"}})
	if err == nil || !strings.Contains(err.Error(), "the reason") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
	err = runTool(t.Context(), command{argv: []string{"no-such-program-here"}})
	if problemCode(err) != api.CodePrerequisite {
		t.Errorf("got %v", err)
	}
}
