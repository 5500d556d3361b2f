package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"banger/api"
)

const (
	rootNumber = 2 // in every ext4
	// maxOddNames bounds how many names are looked up one by one.
	maxOddNames = 1000
	// listLine lists the directory that debugfs stands in. It has a slash, which no
	// name has: nothing else that is listed can look like its echo.
	listLine = "ls -p ./"
)

// numbers finds out which inodes mke2fs gave to the tree. By its number debugfs
// finds an inode at once; by name it would read the directory again for each line
// of the script.
type numbers struct {
	// inodeOf asks the image about a name that no line can hold.
	inodeOf func(path string) (uint32, error)
	odd     int
	listed  []*dentry // directories, in the order of their listings
}

func (b *builder) number(ctx context.Context) error {
	n := &numbers{inodeOf: func(path string) (uint32, error) { return b.inodeOf(ctx, path) }}
	root := b.tree.root
	root.ino.number = rootNumber
	echo, err := b.debugfs(ctx, "list", func(s *script) { n.list(s, root) })
	if err != nil {
		return err
	}
	defer echo.Close() // removed with the staging directory
	if err := readListings(echo, n.listed); err != nil {
		return toolFailed(ctx, "debugfs", err)
	}
	return n.rest(root)
}

// list has everything below d listed, where debugfs stands.
func (n *numbers) list(s *script, d *dentry) {
	n.listed = append(n.listed, d)
	s.line("%s", listLine)
	for _, c := range d.sorted() {
		if s.err != nil {
			return
		}
		if len(c.children) == 0 {
			continue
		}
		name := quote("./" + c.name)
		if isOdd(c.name) {
			if s.err = n.ask(c); s.err != nil {
				return
			}
			name = c.ino.ref()
		}
		s.line("cd %s", name)
		n.list(s, c)
		s.line("cd ..")
	}
}

func (n *numbers) ask(d *dentry) (err error) {
	if n.odd++; n.odd > maxOddNames {
		return api.BadRequest("the archive has more than %d names with line breaks", maxOddNames)
	}
	d.ino.number, err = n.inodeOf(d.path())
	return err
}

// readListings reads what debugfs says to the script: the echo of each line, and
// below that of a listing "/NUMBER/MODE/UID/GID/NAME/SIZE/" for each name. No part
// of a name with a line break can be taken for either, as names hold no slash.
func readListings(r io.Reader, dirs []*dentry) error {
	lines := bufio.NewReaderSize(r, 64<<10)
	var dir *dentry
	for {
		text, err := lines.ReadString('\n')
		text = strings.TrimSuffix(text, "\n")
		switch {
		case text != "debugfs: "+listLine:
			dir.take(text)
		case len(dirs) == 0:
			return errors.New("it lists more than was asked for")
		default:
			dir, dirs = dirs[0], dirs[1:]
		}
		if errors.Is(err, io.EOF) {
			if len(dirs) > 0 {
				return fmt.Errorf("it ends before it lists %.200q", dirs[0].path())
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take takes a line of a directory's listing.
func (d *dentry) take(line string) {
	parts := strings.Split(line, "/")
	if d == nil || len(parts) != 8 || parts[0] != "" || parts[7] != "" {
		return
	}
	n, err := strconv.ParseUint(parts[1], 10, 32)
	if c := d.children[parts[5]]; err == nil && c != nil {
		c.ino.number = uint32(n)
	}
}

// rest numbers what no listing can tell, and sees to it that no inode is missing.
func (n *numbers) rest(root *dentry) error {
	for d := range root.all() {
		if d.ino.number != 0 || isSpecial(d.ino.typ) {
			continue
		}
		if !isOdd(d.name) {
			return fmt.Errorf("cannot import image: mke2fs did not take %.200q", d.path())
		}
		if err := n.ask(d); err != nil {
			return err
		}
	}
	return nil
}
