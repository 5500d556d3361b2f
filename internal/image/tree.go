package image

import (
	"fmt"
	"iter"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"banger/api"
)

// Bounds of an image, where an archive could otherwise make us work for ever.
const (
	maxEntries = 2_000_000
	// maxInDir: mke2fs searches a directory linearly for each name it adds.
	maxInDir = 200_000
	maxName  = 255
	// maxPath is less than Linux allows: mke2fs -d (seen in 1.47.0) writes one
	// byte behind its buffer when a path is exactly 2040 bytes long, and the
	// allocator's rounding hides that at 255, 510 and 1020 only.
	maxPath    = 2000
	maxTarget  = 4095 // of a symbolic link: a block, less its end
	maxLinks   = 65_000
	maxFollows = 40
	// maxBytes bounds all files' sizes together, holes included.
	maxBytes = 1 << 40
)

// inode is one file as the guest shall see it. Hard links share it.
type inode struct {
	typ          uint32 // unix.S_IFREG etc.; 0 for a hard link whose target is not known yet
	mode         uint32 // permission bits, setuid, setgid, sticky
	uid, gid     uint32
	mtime        int64
	major, minor uint32
	target       string // of a symbolic link or an unknown hard link
	xattrs       []xattr
	links        int
	number       uint32 // in the image; 0 = not known yet
}

// ref is how debugfs is told of it.
func (i *inode) ref() string { return fmt.Sprintf("<%d>", i.number) }

type xattr struct{ name, value string }

// dentry is a name in a directory.
type dentry struct {
	name     string
	parent   *dentry // nil for the root
	ino      *inode
	children map[string]*dentry // of a directory
	pathLen  int
}

func (d *dentry) isDir() bool { return d.ino.typ == unix.S_IFDIR }

// path is relative to the root, which is ".".
func (d *dentry) path() string {
	if d.parent == nil {
		return "."
	}
	var parts []string
	for ; d.parent != nil; d = d.parent {
		parts = append(parts, d.name)
	}
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(parts, "/")
}

// all yields d and what is below it, each directory before what is in it.
func (d *dentry) all() iter.Seq[*dentry] {
	var walk func(d *dentry, yield func(*dentry) bool) bool
	walk = func(d *dentry, yield func(*dentry) bool) bool {
		if !yield(d) {
			return false
		}
		for _, c := range d.sorted() {
			if !walk(c, yield) {
				return false
			}
		}
		return true
	}
	return func(yield func(*dentry) bool) { walk(d, yield) }
}

// tree is the filesystem to be. What it holds in files and directories exists
// in the staging tree under the same names.
type tree struct {
	root    *dentry
	entries int
	// bytes is the sum of all sizes, blocks what the data takes on disk.
	bytes, blocks int64
	late          []*dentry // hard links whose targets had not come
}

func newTree() *tree {
	return &tree{root: &dentry{ino: impliedDir(), children: map[string]*dentry{}}}
}

// impliedDir is a directory that no member describes.
func impliedDir() *inode { return &inode{typ: unix.S_IFDIR, mode: 0o755, links: 1} }

// splitName checks a member's name and returns its directory and last part,
// both "" for the root. A leading slash is dropped, as tar does.
func splitName(name string) (dir, base string, err error) {
	if len(name) > maxPath {
		return "", "", api.BadRequest("the archive has a name of %d bytes: %.100q…", len(name), name)
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "..":
			return "", "", api.BadRequest("the archive's member %q leads out of the archive", name)
		case len(part) > maxName:
			return "", "", api.BadRequest("the archive has a file name of %d bytes: %.100q…", len(part), part)
		}
	}
	clean := path.Clean("/" + name)
	if strings.IndexByte(clean, 0) >= 0 {
		return "", "", api.BadRequest("the archive's member %q has an impossible name", name)
	}
	if clean == "/" {
		return "", "", nil
	}
	dir, base = path.Split(clean[1:])
	return strings.TrimSuffix(dir, "/"), base, nil
}

// lookup finds the directory dir as a chroot would: symbolic links are followed
// within the tree, absolute ones begin at its root, and ".." ends there. A
// missing directory is made by mkdir, or with a nil mkdir gives nil.
func (t *tree) lookup(dir string, mkdir func(parent *dentry, name string) (*dentry, error)) (*dentry, error) {
	cur, follows := t.root, 0
	parts := strings.Split(dir, "/")
	for len(parts) > 0 {
		part := parts[0]
		parts = parts[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if cur.parent != nil {
				cur = cur.parent
			}
			continue
		}
		next := cur.children[part]
		switch {
		case next == nil && mkdir == nil:
			return nil, nil
		case next == nil:
			made, err := mkdir(cur, part)
			if err != nil {
				return nil, err
			}
			cur = made
		case next.isDir():
			cur = next
		case next.ino.typ == unix.S_IFLNK:
			if follows++; follows > maxFollows {
				return nil, api.BadRequest("the archive's symbolic links at %q go in a circle", next.path())
			}
			if strings.HasPrefix(next.ino.target, "/") {
				cur = t.root
			}
			parts = append(strings.Split(next.ino.target, "/"), parts...)
		case mkdir == nil:
			return nil, nil
		default:
			return nil, api.BadRequest("the archive puts something into %q, which is no directory", next.path())
		}
	}
	return cur, nil
}

// add puts a name into a directory that does not have it.
func (t *tree) add(parent *dentry, name string, ino *inode) (*dentry, error) {
	d := &dentry{name: name, parent: parent, ino: ino, pathLen: parent.pathLen + 1 + len(name)}
	switch {
	case t.entries >= maxEntries:
		return nil, api.BadRequest("the archive has more than %d members", maxEntries)
	case len(parent.children) >= maxInDir:
		return nil, api.BadRequest("the archive has more than %d names in the directory %q", maxInDir, parent.path())
	case d.pathLen > maxPath || len(name) > maxName:
		return nil, api.BadRequest("the archive has a name that is too long below %.100q", parent.path())
	}
	if d.isDir() {
		d.children = map[string]*dentry{}
	}
	parent.children[name] = d
	t.entries++
	return d, nil
}

// cut takes a name and all below it out of the tree.
func (t *tree) cut(d *dentry) {
	delete(d.parent.children, d.name)
	t.forget(d)
}

func (t *tree) forget(d *dentry) {
	for _, c := range d.children {
		t.forget(c)
	}
	d.ino.links--
	t.entries--
}
