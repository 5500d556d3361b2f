package image

import (
	"archive/tar"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"banger/api"
)

// hardLink gives an earlier member a second name. If there is none of that
// name the link waits for the archive's end.
func (x *extractor) hardLink(parent *dentry, name string, h *tar.Header) error {
	target, err := x.linkTarget(h.Linkname)
	if err != nil {
		return err
	}
	old := parent.children[name]
	if old != nil && old == target {
		return nil // a link to itself: as if it were not there
	}
	if old != nil {
		if err := x.remove(old); err != nil {
			return err
		}
		// The target may have been below the directory that was removed.
		if target, err = x.linkTarget(h.Linkname); err != nil {
			return err
		}
	}
	d, err := x.add(parent, name, &inode{target: h.Linkname, links: 1})
	if err != nil {
		return err
	}
	if target == nil || target.ino.typ == 0 {
		x.late = append(x.late, d)
		return nil
	}
	return x.share(d, target)
}

// linkTarget finds what a hard link names; nil when there is nothing. As with
// link(2) a symbolic link at the end of the name is not followed.
func (x *extractor) linkTarget(name string) (*dentry, error) {
	dirName, base, err := splitName(name)
	if err != nil {
		return nil, err
	}
	dir, err := x.lookup(dirName, nil)
	if err != nil || dir == nil {
		return nil, err
	}
	return dir.children[base], nil
}

// share makes d, whose inode is unknown, another name of target's. Only regular
// files are linked for real: of what does not exist in the staging tree a
// second one is as good.
func (x *extractor) share(d, target *dentry) error {
	switch {
	case target.isDir():
		return api.BadRequest("the archive makes %q a hard link to the directory %q", d.path(), target.path())
	case target.ino.typ != unix.S_IFREG:
		second := *target.ino
		second.links = 1
		d.ino = &second
		return nil
	case target.ino.links >= maxLinks:
		return api.BadRequest("the archive has more than %d hard links to %q", maxLinks, target.path())
	}
	if err := x.write.wait(); err != nil {
		return err
	}
	d.ino = target.ino
	d.ino.links++
	if err := x.stage.Link(target.path(), d.path()); err != nil {
		return fmt.Errorf("cannot unpack %q: %w", d.path(), err)
	}
	return nil
}

// latePasses bounds how long a chain of links to later links may be.
const latePasses = 16

// linkLate resolves the links that came before their targets.
func (x *extractor) linkLate() error {
	waiting := slices.DeleteFunc(x.late, func(d *dentry) bool { return !x.attached(d) })
	for range latePasses {
		var still []*dentry
		for _, d := range waiting {
			target, err := x.linkTarget(d.ino.target)
			if err != nil {
				return err
			}
			if target == nil || target.ino.typ == 0 {
				still = append(still, d)
				continue
			}
			if err := x.share(d, target); err != nil {
				return err
			}
		}
		if len(still) == 0 {
			return nil
		}
		waiting = still
	}
	d := waiting[0]
	return api.BadRequest("the archive's member %q is a hard link to %q, which is not in it", d.path(), d.ino.target).
		WithHint("make the archive of the whole filesystem, not of a part of it")
}

// attached tells whether d is still part of the tree.
func (t *tree) attached(d *dentry) bool {
	for ; d.parent != nil; d = d.parent {
		if d.parent.children[d.name] != d {
			return false
		}
	}
	return d == t.root
}

// symlinks puts the symbolic links at and below d into the staging tree, when
// nothing else will be written to it any more.
func (x *extractor) symlinks(d *dentry) error {
	for _, c := range d.sorted() {
		switch c.ino.typ {
		case unix.S_IFLNK:
			root, err := x.in(d)
			if err == nil {
				err = root.Symlink(c.ino.target, c.name)
			}
			if err != nil {
				return fmt.Errorf("cannot unpack %q: %w", c.path(), err)
			}
		case unix.S_IFDIR:
			if err := x.symlinks(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// sorted returns what is in a directory, by name.
func (d *dentry) sorted() []*dentry {
	out := make([]*dentry, 0, len(d.children))
	for _, name := range slices.Sorted(maps.Keys(d.children)) {
		out = append(out, d.children[name])
	}
	return out
}
