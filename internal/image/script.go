package image

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/api"
)

// maxLine is far less than what debugfs reads at once.
const maxLine = 4000

// script writes lines for debugfs. It reads line by line, and a line that begins
// with "!" is given to a shell: so a line is a fixed word, numbers and quoted names,
// and no name with a line break ever gets into one.
type script struct {
	w      *bufio.Writer
	values string // directory for the attributes' values
	stored map[string]string
	err    error
}

// writeScript makes a file of what write says.
func (b *builder) writeScript(file string, write func(*script)) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot import image: %w", err)
	}
	defer f.Close() // the second time, if all went well
	s := &script{w: bufio.NewWriterSize(f, 64<<10), values: filepath.Join(b.stage, stagedValues), stored: map[string]string{}}
	write(s)
	if s.err != nil {
		return s.err
	}
	if err := s.w.Flush(); err != nil {
		return fmt.Errorf("cannot import image: %w", err)
	}
	return f.Close()
}

func (s *script) line(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if s.err == nil && (isOdd(text) || len(text) > maxLine) {
		s.err = fmt.Errorf("cannot import image: %.100q would be no line of a script", text)
	}
	if s.err == nil {
		_, s.err = s.w.WriteString(text + "\n")
	}
}

// tree turns what mke2fs made of the staging tree into the tree that was described:
// in the order of the numbers, as inodes lie in the image.
func (s *script) tree(root *dentry) {
	var inodes []*inode
	for d := range root.all() {
		if !isSpecial(d.ino.typ) {
			inodes = append(inodes, d.ino)
		}
	}
	slices.SortFunc(inodes, func(a, b *inode) int { return cmp.Compare(a.number, b.number) })
	for _, ino := range slices.Compact(inodes) { // hard links are one
		if s.err != nil {
			return
		}
		s.inode(ino.ref(), ino)
	}
	for d := range root.all() {
		if s.err == nil && isSpecial(d.ino.typ) {
			s.special(d)
		}
	}
}

func isSpecial(typ uint32) bool {
	return typ == unix.S_IFCHR || typ == unix.S_IFBLK || typ == unix.S_IFIFO
}

// special makes a device or a FIFO, which the staging tree cannot hold.
func (s *script) special(c *dentry) {
	if isOdd(c.name) {
		s.err = api.BadRequest("the archive has a device or FIFO with a line break in its name: %q", c.path())
		return
	}
	s.line("cd %s", c.parent.ino.ref())
	switch c.ino.typ {
	case unix.S_IFCHR:
		s.line("mknod %s c %d %d", quote(c.name), c.ino.major, c.ino.minor)
	case unix.S_IFBLK:
		s.line("mknod %s b %d %d", quote(c.name), c.ino.major, c.ino.minor)
	default:
		s.line("mknod %s p", quote(c.name))
	}
	s.inode(quote("./"+c.name), c.ino) // "./" keeps a name from being an inode number
}

// inode writes the fields of the inode called name.
func (s *script) inode(name string, ino *inode) {
	s.line("sif %s uid %d", name, ino.uid)
	s.line("sif %s gid %d", name, ino.gid)
	regular := ino.typ == unix.S_IFREG
	if ino.typ != unix.S_IFLNK && (!regular || stagedMode(ino) != ino.mode) {
		s.line("sif %s mode 0%o", name, ino.typ|ino.mode)
	}
	if !regular { // a file has it from the staging tree
		s.line("sif %s mtime @%d", name, ino.mtime)
	}
	for _, a := range ino.xattrs {
		s.line("ea_set -f %s %s %s", s.value(a.value), name, quote(a.name))
	}
}

// value stores an attribute's value in a file and returns the file's name.
func (s *script) value(v string) string {
	name, ok := s.stored[v]
	if !ok && s.err == nil {
		name = fmt.Sprintf("%d", len(s.stored))
		s.stored[v] = name
		s.err = os.WriteFile(filepath.Join(s.values, name), []byte(v), 0o600)
	}
	return name
}

// isOdd tells whether a name would end a line of the script.
func isOdd(name string) bool { return strings.ContainsAny(name, "\r\n\x00") }

// quote makes one argument of a name, in debugfs's way.
func quote(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// checkOutput reads what debugfs says while it runs a script. It has no exit
// status for a failed command, so every line that does not begin as expected,
// with the echo of a command or the number of a new inode, is a failure.
func checkOutput(r io.Reader, expected ...string) error {
	var first error
	lines := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := lines.ReadString('\n')
		text := strings.TrimRight(line, "\n")
		begins := func(e string) bool { return strings.HasPrefix(text, e) }
		if text != "" && first == nil && !slices.ContainsFunc(expected, begins) {
			first = fmt.Errorf("it says %.300q", text)
		}
		if errors.Is(err, io.EOF) {
			return first
		}
		if err != nil {
			return errors.Join(first, err)
		}
	}
}
