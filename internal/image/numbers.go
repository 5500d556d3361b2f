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
)

// numbers finds out which inodes mke2fs gave to the tree. By its number debugfs
// finds an inode at once; by name it would read the directory again for each line
// of the script.
type numbers struct {
	// inodeOf asks the image about a name that no line can hold.
	inodeOf func(path string) (uint32, error)
	odd     int
}

// listing is a line that has debugfs list a directory.
type listing struct {
	dir  *dentry
	line string
}

func (b *builder) number(ctx context.Context) error {
	n := &numbers{inodeOf: func(path string) (uint32, error) { return b.inodeOf(ctx, path) }}
	root := b.tree.root
	root.ino.number = rootNumber
	all, err := n.listings(root)
	if err != nil {
		return err
	}
	echo, err := b.debugfs(ctx, "list", func(s *script) {
		for _, l := range all {
			s.line("%s", l.line)
		}
	})
	if err != nil {
		return err
	}
	defer echo.Close() // removed with the staging directory
	if err := readListings(echo, all); err != nil {
		return toolFailed(ctx, "debugfs", err)
	}
	return n.rest(root)
}

// listings are of all directories in which mke2fs has put something.
func (n *numbers) listings(root *dentry) (all []listing, err error) {
	for d := range root.all() {
		if !d.isDir() || len(d.children) == 0 {
			continue
		}
		name := quote("/" + d.path())
		if isOdd(name) || len(name) > maxLine/2 {
			if err := n.ask(d); err != nil {
				return nil, err
			}
			name = d.ino.ref()
		}
		all = append(all, listing{d, "ls -p " + name})
	}
	return all, nil
}

func (n *numbers) ask(d *dentry) (err error) {
	if n.odd++; n.odd > maxOddNames {
		return api.BadRequest("the archive has more than %d names with line breaks", maxOddNames)
	}
	d.ino.number, err = n.inodeOf(d.path())
	return err
}

// readListings reads what debugfs says to the lines: the echo of each, and below it
// "/NUMBER/MODE/UID/GID/NAME/SIZE/" for each name. No part of a name with a line break
// can be taken for that, as names hold no slash.
func readListings(r io.Reader, all []listing) error {
	lines := bufio.NewReaderSize(r, 64<<10)
	var dir *dentry
	for {
		text, err := lines.ReadString('\n')
		text = strings.TrimSuffix(text, "\n")
		if len(all) > 0 && text == "debugfs: "+all[0].line {
			dir, all = all[0].dir, all[1:]
		} else if dir != nil {
			dir.listed(text)
		}
		if errors.Is(err, io.EOF) {
			if len(all) > 0 {
				return fmt.Errorf("it ends before %.200q", all[0].line)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// listed takes a line of a directory's listing.
func (d *dentry) listed(line string) {
	parts := strings.Split(line, "/")
	if len(parts) != 8 || parts[0] != "" || parts[7] != "" {
		return
	}
	n, err := strconv.ParseUint(parts[1], 10, 32)
	if c := d.children[parts[5]]; err == nil && c != nil {
		c.ino.number = uint32(n)
	}
}

// rest numbers what no listing can tell, and sees to it that nothing is missing.
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
