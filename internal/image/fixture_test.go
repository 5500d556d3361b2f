package image

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// entry is one member of an archive under test: a type, a name and what else
// matters.
type entry struct {
	tar.Header
	data string
}

func reg(name, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data}
}

func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}

func symlink(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}, ""}
}

func hard(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, ""}
}

func device(kind byte, name string, major, minor int64) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Mode: 0o620, Devmajor: major, Devminor: minor}, ""}
}

// with changes the header.
func (e entry) with(f func(h *tar.Header)) entry {
	f(&e.Header)
	return e
}

var mtime = time.Unix(1_600_000_000, 0)

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.data))
		if h.ModTime.IsZero() {
			h.ModTime = mtime
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// small keeps test images cheap.
var small = Options{VirtualSize: 64 << 20}

// ext4Image is an imported image that can be asked.
type ext4Image struct {
	t    testing.TB
	file string
	info Info
}

func importImage(t testing.TB, raw []byte) ext4Image {
	t.Helper()
	where := t.TempDir()
	info, err := Import(t.Context(), bytes.NewReader(raw), where, small)
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(where)
	if err != nil || len(left) != 1 || left[0].Name() != File {
		t.Errorf("the directory holds %v, %v", left, err)
	}
	im := ext4Image{t, filepath.Join(where, File), info}
	im.check()
	return im
}

// tool runs a program of e2fsprogs.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = []string{"LC_ALL=C", "TZ=UTC"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (im ext4Image) check() {
	im.t.Helper()
	tool(im.t, "e2fsck", "-fn", im.file)
}

func (im ext4Image) debugfs(request string) string {
	im.t.Helper()
	_, out, _ := strings.Cut(tool(im.t, "debugfs", "-R", request, im.file), "\n")
	return out
}

var statFields = regexp.MustCompile(
	`(?s)Inode: (\d+) +Type: ([A-Za-z ]+?) +Mode: +(\d+).*User: +(-?\d+) +Group: +(-?\d+).*?Size: (\d+).*?Links: (\d+).*mtime: 0x([0-9a-f]+)`)

// stat is "type mode uid gid size links mtime" of a file, or "" if there is none.
func (im ext4Image) stat(path string) string {
	im.t.Helper()
	m := statFields.FindStringSubmatch(im.debugfs("stat " + quote("/"+path)))
	if m == nil {
		return ""
	}
	return strings.Join(m[2:9], " ")
}

func (im ext4Image) ino(path string) string {
	im.t.Helper()
	m := statFields.FindStringSubmatch(im.debugfs("stat " + quote("/"+path)))
	if m == nil {
		return ""
	}
	return m[1]
}

func (im ext4Image) cat(path string) string {
	im.t.Helper()
	return im.debugfs("cat " + quote("/"+path))
}
