package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"banger/api"
)

// Archives that try to get out, or ask for what cannot be.
func TestHostileArchivesRefused(t *testing.T) {
	deep := strings.Repeat("d/", 2100) + "x"
	circle := []entry{symlink("a", "b"), symlink("b", "a"), reg("a/x", "x")}
	whole := archive(t, reg("etc/hostname", strings.Repeat("x", 4000)), reg("etc/more", strings.Repeat("y", 4000)))
	huge := archive(t, reg("a", "x"))
	copy(huge[124:136], "77777777777\x00") // a size of 8 GiB that does not follow
	fixChecksum(huge)
	sparse := archive(t, reg("a", "x").with(func(h *tar.Header) { h.Format = tar.FormatGNU }))
	copy(sparse[124:136], "\x80\x00\x00\x00\x00\x00\x7f\xff\xff\xff\xff\xff")
	fixChecksum(sparse)
	pax := func(key, value string) func(*tar.Header) {
		return func(h *tar.Header) { h.PAXRecords = map[string]string{key: value} }
	}
	for name, tc := range map[string]struct {
		raw  []byte
		want string
	}{
		"nothing":           {nil, "is empty"},
		"no members":        {archive(t), "holds no files"},
		"root only":         {archive(t, dir("./")), "holds no files"},
		"text":              {[]byte("hello, world\n"), "no tar archive"},
		"long text":         {bytes.Repeat([]byte("hello, world\n"), 1000), "no tar archive"},
		"bzip2":             {[]byte("BZh91AY&SY and so on"), "compressed with bzip2"},
		"broken gzip":       {[]byte("\x1f\x8b\x08 what"), "damaged or truncated"},
		"cut in header":     {whole[:300], "no tar archive"},
		"cut in data":       {whole[:2000], "damaged or truncated"},
		"cut at member":     {whole[:512+4096], "its end mark is missing"},
		"cut before end":    {whole[:2*(512+4096)], "its end mark is missing"},
		"huge claim":        {huge, "damaged or truncated"},
		"huger claim":       {sparse, "more than 1 TiB"},
		"climbing":          {archive(t, reg("../x", "x")), "leads out"},
		"climbing inside":   {archive(t, reg("a/../../x", "x")), "leads out"},
		"climbing link":     {archive(t, reg("a", "x"), hard("b", "../../etc/passwd")), "leads out"},
		"circle":            {archive(t, circle...), "go in a circle"},
		"below a file":      {archive(t, reg("a", "x"), reg("a/b", "x")), "no directory"},
		"below a device":    {archive(t, device(tar.TypeChar, "a", 1, 3), reg("a/b", "x")), "no directory"},
		"link to nothing":   {archive(t, reg("a", "x"), hard("b", "nothing")), "not in it"},
		"links in a circle": {archive(t, reg("a", "x"), hard("b", "c"), hard("c", "b")), "not in it"},
		"link to directory": {archive(t, dir("a"), hard("b", "a")), "hard link to the directory"},
		"link to root":      {archive(t, dir("a"), hard("b", "/")), "not in it"},
		"long name":         {archive(t, reg(strings.Repeat("n", 256), "x")), "file name of 256 bytes"},
		"deep name":         {archive(t, reg(deep, "x")), "name of 4201 bytes"},
		"deep by link": {archive(t, symlink("a", strings.Repeat("d/", 900)), symlink("b", "a/"+strings.Repeat("e/", 900)),
			reg("b/x", "x")), "too long"},
		"odd device":    {archive(t, device(tar.TypeFifo, "a\nb", 0, 0)), "line break"},
		"device number": {archive(t, device(tar.TypeChar, "a", 5000, 0)), "device number"},
		"empty symlink": {archive(t, symlink("a", "")), "symbolic link"},
		"long symlink":  {archive(t, symlink("a", strings.Repeat("x/", 2048))), "symbolic link"},
		"owner -1":      {archive(t, reg("a", "").with(func(h *tar.Header) { h.Uid = -1; h.Format = tar.FormatGNU })), "impossible owner"},
		"owner 2^32":    {archive(t, reg("a", "").with(func(h *tar.Header) { h.Gid = 1 << 32 })), "impossible owner"},
		"big xattr":     {archive(t, reg("a", "").with(pax("SCHILY.xattr.user.a", strings.Repeat("x", 4096)))), "extended attributes"},
		"odd xattr":     {archive(t, reg("a", "").with(pax("SCHILY.xattr.user.a\n!sh", "x"))), "extended attributes"},
		"unknown type":  {archive(t, reg("a", "").with(func(h *tar.Header) { h.Typeflag = 'Z' })), "unknown type"},
		"root is file":  {archive(t, reg("./", "").with(func(h *tar.Header) { h.Name = "." })), "root is no directory"},
		"docker save":   {archive(t, reg("manifest.json", "[]"), dir("blobs")), "container image in layers"},
	} {
		t.Run(name, func(t *testing.T) {
			var p *api.Problem
			err := refused(t, tc.raw)
			if !errors.As(err, &p) || !strings.Contains(p.Detail, tc.want) {
				t.Errorf("got %v, want a problem with %q", err, tc.want)
			}
		})
	}
}

// fixChecksum makes an edited first header valid again.
func fixChecksum(raw []byte) {
	copy(raw[148:156], "        ")
	sum := 0
	for _, b := range raw[:512] {
		sum += int(b)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// Archives that are odd and mean something all the same. The wanted files are
// "path=content".
func TestOddArchives(t *testing.T) {
	long := strings.Repeat("long/", 60) + strings.Repeat("n", 200)
	gnu := func(h *tar.Header) { h.Format = tar.FormatGNU }
	for name, tc := range map[string]struct {
		entries []entry
		want    []string
		absent  []string
	}{
		"absolute names":       {[]entry{reg("/etc/x", "1"), hard("/etc/y", "/etc/x")}, []string{"etc/x=1", "etc/y=1"}, nil},
		"dotted names":         {[]entry{reg("././a//b/./c", "1")}, []string{"a/b/c=1"}, nil},
		"merged usr":           {[]entry{symlink("bin", "usr/bin"), reg("bin/sh", "1")}, []string{"usr/bin/sh=1"}, nil},
		"absolute dir link":    {[]entry{dir("usr/lib"), symlink("lib", "/usr/lib"), reg("lib/x", "1")}, []string{"usr/lib/x=1"}, nil},
		"link climbs":          {[]entry{symlink("a", "../../../../etc"), reg("a/x", "1")}, []string{"etc/x=1"}, nil},
		"link to host":         {[]entry{symlink("a", "/tmp"), reg("a/banger-escape", "1")}, []string{"tmp/banger-escape=1"}, nil},
		"link to link":         {[]entry{symlink("a", "b/c"), symlink("b", "/d"), symlink("d/c", "../e"), reg("a/x", "1")}, []string{"e/x=1"}, nil},
		"link then file":       {[]entry{symlink("a", "/etc/passwd"), reg("a", "1")}, []string{"a=1"}, nil},
		"hard link via dir":    {[]entry{symlink("bin", "usr/bin"), reg("usr/bin/a", "1"), hard("b", "bin/a")}, []string{"b=1"}, nil},
		"hard link first":      {[]entry{hard("a", "b"), hard("b", "c"), reg("c", "1")}, []string{"a=1", "b=1", "c=1"}, nil},
		"late link replaced":   {[]entry{hard("a", "nothing"), reg("a", "1")}, []string{"a=1"}, nil},
		"late link cut off":    {[]entry{hard("d/a", "nothing"), reg("d", "1")}, nil, []string{"d/a"}},
		"link to itself":       {[]entry{reg("a", "1"), hard("a", "a")}, []string{"a=1"}, nil},
		"last wins":            {[]entry{reg("a", "long content"), reg("a", "2")}, []string{"a=2"}, nil},
		"links keep the first": {[]entry{reg("a", "1"), hard("b", "a"), reg("a", "2")}, []string{"a=2", "b=1"}, nil},
		"dir over file":        {[]entry{reg("a", "1"), dir("a"), reg("a/x", "2")}, []string{"a/x=2"}, nil},
		"file over dir":        {[]entry{reg("a/b/c", "1"), reg("a", "2")}, []string{"a=2"}, []string{"a/b"}},
		"file over dir again":  {[]entry{reg("a/b", "1"), reg("a", "2"), dir("a"), reg("a/c", "3")}, []string{"a/c=3"}, []string{"a/b"}},
		"dir over link":        {[]entry{dir("b"), symlink("a", "b"), dir("a"), reg("a/x", "1")}, []string{"a/x=1"}, []string{"b/x"}},
		"link over dir":        {[]entry{reg("a/x", "1"), symlink("a", "b"), reg("a/y", "2")}, []string{"b/y=2"}, []string{"b/x"}},
		"dir twice":            {[]entry{reg("a/x", "1"), dir("a"), reg("a/y", "2")}, []string{"a/x=1", "a/y=2"}, nil},
		"target below removed": {[]entry{reg("a/x", "1"), hard("a", "a/x"), reg("a/x", "3")}, nil, nil},
		"device over file":     {[]entry{reg("a", "1"), device(tar.TypeChar, "a", 1, 3), reg("b", "1")}, []string{"b=1"}, nil},
		"file over device":     {[]entry{device(tar.TypeChar, "a", 1, 3), reg("a", "1")}, []string{"a=1"}, nil},
		"long names, PAX":      {[]entry{reg(long, "1"), hard("h", long)}, []string{long + "=1", "h=1"}, nil},
		"long names, GNU":      {[]entry{reg(long, "1").with(gnu), hard("h", long).with(gnu)}, []string{long + "=1", "h=1"}, nil},
		"very deep":            {[]entry{reg(strings.Repeat("d/", 990)+"x", "1")}, []string{strings.Repeat("d/", 990) + "x=1"}, nil},
		"lost+found":           {[]entry{dir("lost+found"), reg("a", "1")}, []string{"a=1"}, nil},
		"staging's own name":   {[]entry{reg(".staging/root/x", "1"), reg("rootfs.ext4", "2")}, []string{".staging/root/x=1", "rootfs.ext4=2"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "target below removed" {
				if err := refused(t, archive(t, tc.entries...)); err == nil {
					t.Error("a link without a target was accepted")
				}
				return
			}
			im := importImage(t, archive(t, tc.entries...))
			for _, w := range tc.want {
				path, content, _ := strings.Cut(w, "=")
				if got := im.cat(path); got != content {
					t.Errorf("%q holds %q, want %q", path, got, content)
				}
			}
			for _, path := range tc.absent {
				if im.stat(path) != "" {
					t.Errorf("%q is there", path)
				}
			}
		})
	}
	if _, err := os.Stat("/tmp/banger-escape"); err == nil {
		t.Error("a member escaped to /tmp")
	}
}

// Many names make the filesystem and its inode table larger, not the import fail.
func TestManyFiles(t *testing.T) {
	var entries []entry
	for i := range 9000 {
		entries = append(entries, reg(fmt.Sprintf("d%d/f%d", i%90, i), ""))
	}
	im := importImage(t, archive(t, entries...))
	if im.info.Files != 9090 {
		t.Errorf("%d files", im.info.Files)
	}
}

func TestDataLargerThanWanted(t *testing.T) {
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(i>>8 ^ i*7)
	}
	var entries []entry
	for i := range 90 {
		entries = append(entries, reg(fmt.Sprint("f", i), string(noise)))
	}
	if im := importImage(t, archive(t, entries...)); im.info.Size < 150<<20 {
		t.Errorf("size %d", im.info.Size)
	}
}

var commandLine = regexp.MustCompile(`^(sif ("(""|[^"\n])*"|<\d+>) (uid|gid|mode|mtime) @?\d+|cd ("(""|[^"\n])*"|<\d+>|\.\.)|ls -p \./|` +
	`mknod "(""|[^"\n])*" (p|[bc] \d+ \d+)|ea_set -f \d+ ("(""|[^"\n])*"|<\d+>) "(""|[^"\n])*")\n$`)

func FuzzImport(f *testing.F) {
	f.Add(archive(f, dir("a"), reg("a/b", "x"), symlink("c", "a"), hard("c/d", "a/b"), device(tar.TypeFifo, "e", 0, 0)))
	f.Add(archive(f, reg(strings.Repeat("long/", 60)+"n", "x"), reg("../x", "x"), symlink("/y", "/tmp"), reg("y/z", "")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		parent := t.TempDir()
		stage := filepath.Join(parent, "stage")
		if err := os.Mkdir(stage, 0o700); err != nil {
			t.Fatal(err)
		}
		tr, err := extract(t.Context(), bytes.NewReader(raw), stage, nil)
		if entries, rerr := os.ReadDir(parent); rerr != nil || len(entries) != 1 {
			t.Fatalf("something was written outside: %v, %v", entries, rerr)
		}
		if err != nil {
			return
		}
		compareTree(t, tr.root, stage)
		// No name gets a line of its own into the script.
		var out bytes.Buffer
		s := script{w: bufio.NewWriter(&out), values: parent, stored: map[string]string{}}
		n := numbers{inodeOf: func(string) (uint32, error) { return 99, nil }}
		n.list(&s, tr.root)
		s.tree(tr.root)
		if s.err == nil {
			s.err = s.w.Flush()
		}
		for line := range strings.Lines(out.String()) {
			if !commandLine.MatchString(line) {
				t.Errorf("line %q", line)
			}
		}
	})
}

// compareTree checks that the staging tree is what the tree in memory says.
func compareTree(t *testing.T, d *dentry, path string) {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, c := range d.sorted() {
		if !isSpecial(c.ino.typ) {
			want = append(want, c.name)
		}
		if c.isDir() {
			compareTree(t, c, filepath.Join(path, c.name))
		}
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s holds %q, want %q", path, got, want)
	}
}
