package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"banger/api"
)

// Everything a root filesystem holds that an ordinary user cannot make.
func TestFacts(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	xattrs := func(h *tar.Header) {
		h.PAXRecords = map[string]string{
			"SCHILY.xattr.security.capability": capability,
			"SCHILY.xattr.user.note":           "a \"b\"\nc",
			"SCHILY.xattr.user.empty":          "",
			"SCHILY.xattr.com.apple.thing":     "x",
		}
	}
	owner := func(uid, gid int, mode int64) func(*tar.Header) {
		return func(h *tar.Header) { h.Uid, h.Gid, h.Mode = uid, gid, mode }
	}
	im := importImage(t, archive(t,
		dir("./").with(owner(3, 4, 0o711)),
		dir("tmp").with(owner(0, 0, 0o1777)),
		dir("closed").with(owner(5, 5, 0)),
		reg("closed/in", "inside").with(owner(1, 1, 0)),
		reg("bin/su", "setuid").with(owner(0, 0, 0o4755)),
		reg("big-ids", "x").with(owner(70000, 4294967294, 0o640)),
		reg("bin/ping", "ping").with(xattrs),
		hard("bin/ping6", "bin/ping"),
		symlink("bin/sh", "dash").with(owner(7, 8, 0o777)),
		symlink("absolute", "/etc/passwd"),
		device(tar.TypeChar, "dev/console", 5, 1),
		device(tar.TypeBlock, "dev/disk", 259, 60000),
		device(tar.TypeFifo, "run/pipe", 0, 0).with(owner(9, 10, 0o622)),
		hard("dev/console2", "dev/console"),
		reg("empty", ""),
		reg("srv/implied/dirs", "y"),
	))
	const at = " 5f5e1000"
	for path, want := range map[string]string{
		"":             "directory 0711 3 4 4096 9" + at,
		"tmp":          "directory 01777 0 0 4096 2" + at,
		"closed":       "directory 0000 5 5 4096 2" + at,
		"closed/in":    "regular 0000 1 1 6 1" + at,
		"bin/su":       "regular 04755 0 0 6 1" + at,
		"big-ids":      "regular 0640 70000 -2 1 1" + at, // as debugfs prints 4294967294
		"bin/ping":     "regular 0644 0 0 4 2" + at,
		"bin/ping6":    "regular 0644 0 0 4 2" + at,
		"bin/sh":       "symlink 0777 7 8 4 1" + at,
		"absolute":     "symlink 0777 0 0 11 1" + at,
		"dev/console":  "character special 0620 0 0 0 1" + at,
		"dev/console2": "character special 0620 0 0 0 1" + at,
		"dev/disk":     "block special 0620 0 0 0 1" + at,
		"run/pipe":     "FIFO 0622 9 10 0 1" + at,
		"empty":        "regular 0644 0 0 0 1" + at,
		"srv/implied":  "directory 0755 0 0 4096 2 00000000",
	} {
		if got := im.stat(path); got != want {
			t.Errorf("%q is %q, want %q", path, got, want)
		}
	}
	if a, b := im.ino("bin/ping"), im.ino("bin/ping6"); a != b {
		t.Errorf("the hard link is another inode: %s, %s", a, b)
	}
	if got := im.debugfs("stat /dev/disk"); !strings.Contains(got, "259:60000") {
		t.Errorf("device number: %s", got)
	}
	value := filepath.Join(t.TempDir(), "value")
	for name, want := range map[string]string{"security.capability": capability, "user.note": "a \"b\"\nc", "user.empty": ""} {
		im.debugfs("ea_get -f " + value + " /bin/ping " + name)
		if got, err := os.ReadFile(value); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	if got := im.debugfs("ea_list /bin/ping"); strings.Contains(got, "apple") {
		t.Errorf("a foreign attribute: %s", got)
	}
	if im.info.Size < 64<<20 || im.info.DiskBytes == 0 || im.info.Files != 20 {
		t.Errorf("info %+v", im.info)
	}
}

func TestOddNames(t *testing.T) {
	names := []string{
		"with space", " lead", "trail ", "tab\there", `quote"d`, `two""quotes`, `back\slash`, "'single'", "<12>", "<2>",
		"-f", "--", "#comment", "!touch pwned", "a;b", "$(x)", "*", "line\nbreak", "x\ndebugfs: ls -p .", "return\rhere", "\n", "!sh\n!sh",
		"latin1-\xe9", "\xff\xfe", "日本語", "...", strings.Repeat("n", 255), strings.Repeat(`"`, 255),
	}
	var entries []entry
	own := func(h *tar.Header) { h.Uid, h.Gid, h.Mode = 77, 88, 0o4711 }
	for _, n := range names {
		entries = append(entries, reg("files/"+n, n).with(own), dir("dirs/"+n).with(own), reg("dirs/"+n+"/in", n).with(own),
			symlink("links/"+n, n).with(own))
		if !isOdd(n) {
			entries = append(entries, device(tar.TypeFifo, "fifos/"+n, 0, 0).with(own))
		}
	}
	im := importImage(t, archive(t, entries...))
	for _, n := range names {
		for path, want := range map[string]string{
			"files/" + n: "regular 04711 77 88", "dirs/" + n: "directory 04711 77 88",
			"dirs/" + n + "/in": "regular 04711 77 88", "links/" + n: "symlink 0777 77 88", "fifos/" + n: "FIFO 04711 77 88",
		} {
			if isOdd(n) && strings.HasPrefix(path, "fifos") {
				continue
			}
			if got := im.stat(path); !strings.HasPrefix(got, want) {
				t.Errorf("%q is %q, want %q", path, got, want)
			}
		}
		if got := im.cat("files/" + n); got != n {
			t.Errorf("%q holds %q", n, got)
		}
	}
	if _, err := os.Stat("pwned"); err == nil {
		t.Error("a name was run as a command")
	}
}

func TestCompressions(t *testing.T) {
	plain := archive(t, dir("etc"), reg("etc/hostname", "box\n"))
	forms := map[string][]byte{
		"plain": plain,
		"gzip":  compress(t, plain, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		"xz":    compress(t, plain, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }),
		"zstd":  compress(t, plain, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
		// Its first member's name looks like bzip2.
		"BZh": archive(t, reg("BZh91", "x"), reg("etc/hostname", "box\n")),
	}
	for name, raw := range forms {
		t.Run(name, func(t *testing.T) {
			var last int64
			where := t.TempDir()
			info, err := Import(t.Context(), iotest.OneByteReader(bytes.NewReader(raw)), where,
				Options{VirtualSize: 1, Progress: func(n int64) { last = n }})
			if err != nil {
				t.Fatal(err)
			}
			if last != int64(len(raw)) {
				t.Errorf("progress ended at %d of %d", last, len(raw))
			}
			if info.Size < 64<<20 || info.Size > 80<<20 {
				t.Errorf("size %d", info.Size)
			}
			im := ext4Image{t, filepath.Join(where, File), info}
			if got := im.cat("etc/hostname"); got != "box\n" {
				t.Errorf("content %q", got)
			}
			for _, cut := range []int{1, 20, 600, 1025, len(raw) / 2} {
				if cut >= len(raw) || name == "plain" && cut < 513 || name == "BZh" && cut < 513 {
					continue // one block of the end mark is enough
				}
				if err := refused(t, raw[:len(raw)-cut]); err == nil {
					t.Errorf("without the last %d bytes it was accepted", cut)
				}
			}
		})
	}
}

func compress(t testing.TB, b []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := open(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// refused imports what must not import, and looks for what it leaves.
func refused(t testing.TB, raw []byte) error {
	t.Helper()
	where := t.TempDir()
	_, err := Import(t.Context(), bytes.NewReader(raw), where, small)
	if left, rerr := os.ReadDir(where); err != nil && (rerr != nil || len(left) > 0) {
		t.Errorf("left behind: %v, %v", left, rerr)
	}
	return err
}

func TestSparse(t *testing.T) {
	hole := strings.Repeat("\x00", 8<<20)
	im := importImage(t, archive(t, reg("holes", hole+"middle"+hole), reg("zeros", hole)))
	if im.info.DiskBytes > 12<<20 {
		t.Errorf("zeros take %d bytes", im.info.DiskBytes)
	}
	if got := im.cat("holes"); got != hole+"middle"+hole {
		t.Error("the content changed")
	}
	if got := im.stat("zeros"); !strings.HasPrefix(got, "regular 0644 0 0 8388608 ") {
		t.Errorf("zeros: %s", got)
	}
}

func TestWhoIsToBlame(t *testing.T) {
	var p *api.Problem
	raw := archive(t, reg("a", strings.Repeat("x", 5000)))
	lost := errors.New("connection lost")
	_, err := Import(t.Context(), io.MultiReader(bytes.NewReader(raw[:3000]), iotest.ErrReader(lost)), t.TempDir(), small)
	if !errors.Is(err, lost) || errors.As(err, &p) {
		t.Errorf("a lost connection: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	where := t.TempDir()
	_, err = Import(ctx, io.MultiReader(bytes.NewReader(raw[:3000]), cancelling{cancel}), where, small)
	if !errors.Is(err, context.Canceled) || errors.As(err, &p) {
		t.Errorf("cancelled: %v", err)
	}
	if left, err := os.ReadDir(where); err != nil || len(left) > 0 {
		t.Errorf("cancelled: left behind: %v, %v", left, err)
	}
	err = problem(&os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC})
	if !errors.As(err, &p) || p.Code != api.CodeNoSpace || p.Hint == "" {
		t.Errorf("no space: %v", err)
	}
	p = nil
	said := lastLines([]byte("a\nx: No space left on device while writing\nmke2fs: gave up\n"))
	if err := problem(toolFailed(t.Context(), "mke2fs", errors.New(said))); !errors.As(err, &p) || p.Code != api.CodeNoSpace {
		t.Errorf("no space for mke2fs: %v", err)
	}
	if err := os.WriteFile(filepath.Join(where, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = Import(t.Context(), bytes.NewReader(raw), where, small); err == nil {
		t.Error("a directory with something in it was used")
	}
	if _, err := os.Stat(filepath.Join(where, "precious")); err != nil {
		t.Error(err)
	}
}

// cancelling is an input during which the person loses patience.
type cancelling struct{ cancel func() }

func (c cancelling) Read(b []byte) (int, error) {
	c.cancel()
	return copy(b, "x"), nil
}

func TestCheckOutput(t *testing.T) {
	for out, want := range map[string]bool{
		"":                                       true,
		"debugfs: sif a mode 0\n":                true,
		"debugfs: mknod a p\nAllocated inode: 7": true,
		"a: File not found by ext2_lookup\n":     false,
		"debugfs: sif a mode 0\nno: error":       false,
	} {
		if err := checkOutput(strings.NewReader(out), "debugfs: ", "Allocated inode: "); (err == nil) != want {
			t.Errorf("%q: %v", out, err)
		}
	}
}

// What debugfs refuses must fail the import, also in the midst of a script.
func TestScriptFailureIsSeen(t *testing.T) {
	im := importImage(t, archive(t, reg("a", "x")))
	found, err := findTools()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"sif nothing mode 0", "ea_set -f absent a user.x", "cd nothing", "mknod a", "frobnicate"} {
		b := builder{tools: found, stage: t.TempDir(), image: im.file}
		if err := os.Mkdir(filepath.Join(b.stage, stagedValues), 0o700); err != nil {
			t.Fatal(err)
		}
		err := b.apply(t.Context(), func(s *script) {
			for _, l := range []string{"sif a uid 1", line, "sif a gid 1"} {
				s.line("%s", l)
			}
		})
		if err == nil {
			t.Errorf("%q went unnoticed", line)
		}
	}
}
