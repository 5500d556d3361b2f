package image

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadListings(t *testing.T) {
	tr := newTree()
	add := func(parent *dentry, name string, typ uint32) *dentry {
		t.Helper()
		d, err := tr.add(parent, name, &inode{typ: typ, links: 1})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	// No name can end its own listing, nor give another one's number.
	forged := "x\ndebugfs: ls -p .\n"
	file, dir := add(tr.root, "file", unix.S_IFREG), add(tr.root, "dir", unix.S_IFDIR)
	add(tr.root, forged, unix.S_IFREG)
	inDir := add(dir, "file", unix.S_IFREG)
	text := strings.Join([]string{
		"debugfs: ls -p ./", "/2/040755/0/0/.//", "/2/040755/0/0/..//", "/13/100644/0/0/" + forged + "/7/", "/12/100644/0/0/file/3/",
		"/0/000000/0/0//0/", "/14/040755/0/0/dir//", "", `debugfs: cd "./dir"`,
		"debugfs: ls -p ./", "/14/040755/0/0/.//", "/2/040755/0/0/..//", "/15/100644/0/0/file/3/", "", "debugfs: cd ..",
	}, "\n")
	if err := readListings(strings.NewReader(text), []*dentry{tr.root, dir}); err != nil {
		t.Fatal(err)
	}
	if file.ino.number != 12 || dir.ino.number != 14 || inDir.ino.number != 15 {
		t.Errorf("numbers %d, %d, %d", file.ino.number, dir.ino.number, inDir.ino.number)
	}
	for what, dirs := range map[string][]*dentry{"too few": {tr.root}, "too many": {tr.root, dir, dir}} {
		if err := readListings(strings.NewReader(text), dirs); err == nil {
			t.Errorf("%s listings went unnoticed", what)
		}
	}
}
