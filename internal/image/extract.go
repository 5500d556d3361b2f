package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"banger/api"
)

// extractor unpacks one archive into a tree and its staging directory.
type extractor struct {
	*tree
	src   *source
	stage *os.Root
	buf   []byte
	write *writers

	// The directory files are being put into, since an archive has them side by
	// side: its name in the archive (valid while lastDir is not nil) and, opened
	// when needed, its place in the staging tree.
	lastName string
	lastDir  *dentry
	openDir  *dentry
	open     *stagedDir
}

// extract reads the archive r into the existing directory stage. Progress may
// be nil.
func extract(ctx context.Context, r io.Reader, stage string, progress func(int64)) (t *tree, err error) {
	root, err := os.OpenRoot(stage)
	if err != nil {
		return nil, fmt.Errorf("cannot import image: %w", err)
	}
	defer root.Close()
	src, err := openSource(ctx, r, progress)
	if err != nil {
		return nil, err
	}
	defer src.close() // a decoder's Close has nothing to say
	x := &extractor{tree: newTree(), src: src, stage: root, buf: make([]byte, chunk), write: startWriters()}
	defer x.closeDir()
	defer x.write.close()
	if err := x.readAll(); err != nil {
		return nil, err
	}
	if err := x.write.wait(); err != nil {
		return nil, err
	}
	x.blocks += x.write.blocks.Load()
	if x.entries == 0 {
		return nil, api.BadRequest("the archive holds no files").
			WithHint("give the tar of a root filesystem")
	}
	if err := x.notContainerImage(); err != nil {
		return nil, err
	}
	if err := x.linkLate(); err != nil {
		return nil, err
	}
	return x.tree, x.symlinks(x.root)
}

func (x *extractor) readAll() error {
	tr := tar.NewReader(x.src)
	for first := true; ; first = false {
		h, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF):
			return x.src.finish()
		case errors.Is(err, tar.ErrHeader) && first && x.src.failed.Load() == nil:
			return noTar()
		case err != nil:
			return x.src.blame(err)
		}
		if err := x.member(h, tr); err != nil {
			return err
		}
	}
}

func (x *extractor) member(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	dirName, base, err := splitName(h.Name)
	if err != nil {
		return err
	}
	ino, err := describe(h)
	if err != nil {
		return err
	}
	if base == "" {
		if ino.typ != unix.S_IFDIR {
			return api.BadRequest("the archive's root is no directory")
		}
		x.root.ino = ino
		return nil
	}
	parent, err := x.dir(dirName)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return x.hardLink(parent, base, h)
	}
	if old := parent.children[base]; old != nil {
		if old.isDir() && ino.typ == unix.S_IFDIR {
			old.ino = ino // described again; what is in it stays
			return nil
		}
		if err := x.remove(old); err != nil {
			return err
		}
	}
	switch ino.typ {
	case unix.S_IFDIR:
		_, err = x.mkdir(parent, base, ino)
		return err
	case unix.S_IFREG:
		return x.file(parent, base, ino, h.Size, r)
	}
	_, err = x.add(parent, base, ino)
	return err
}

// dir finds or makes the directory a member lies in.
func (x *extractor) dir(name string) (*dentry, error) {
	if x.lastDir != nil && x.lastName == name {
		return x.lastDir, nil
	}
	d, err := x.lookup(name, func(parent *dentry, name string) (*dentry, error) {
		return x.mkdir(parent, name, impliedDir())
	})
	if err != nil {
		return nil, err
	}
	x.lastName, x.lastDir = name, d
	return d, nil
}

// in opens a directory of the staging tree. It is good until the next call for
// those who do not hold it.
func (x *extractor) in(d *dentry) (*stagedDir, error) {
	if x.openDir == d {
		return x.open, nil
	}
	var r *os.Root
	var err error
	if x.openDir != nil && x.openDir == d.parent { // one step instead of the whole way
		r, err = x.open.OpenRoot(d.name)
	} else {
		r, err = x.stage.OpenRoot(d.path())
	}
	x.closeDir()
	if err != nil {
		return nil, fmt.Errorf("cannot import image: %w", err)
	}
	x.openDir, x.open = d, (&stagedDir{Root: r}).hold()
	return x.open, nil
}

// closeDir forgets the open directory, e.g. as it may be about to vanish.
func (x *extractor) closeDir() {
	if x.open != nil {
		x.open.release()
	}
	x.openDir, x.open = nil, nil
}

func (x *extractor) mkdir(parent *dentry, name string, ino *inode) (*dentry, error) {
	d, err := x.add(parent, name, ino)
	if err != nil {
		return nil, err
	}
	x.blocks += blockSize
	r, err := x.in(parent)
	if err == nil {
		err = r.Mkdir(name, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot unpack %q: %w", d.path(), err)
	}
	return d, nil
}

// remove makes room for a later member of the same name.
func (x *extractor) remove(d *dentry) error {
	staged, where := d.ino.typ == unix.S_IFREG || d.isDir(), d.path()
	x.cut(d)
	x.lastDir = nil
	x.closeDir()
	if !staged {
		return nil
	}
	if err := x.write.wait(); err != nil {
		return err
	}
	if err := x.stage.RemoveAll(where); err != nil {
		return fmt.Errorf("cannot replace %q: %w", where, err)
	}
	return nil
}

func (x *extractor) file(parent *dentry, name string, ino *inode, size int64, r io.Reader) error {
	d, err := x.add(parent, name, ino)
	if err != nil {
		return err
	}
	if size > maxBytes-x.bytes {
		return api.BadRequest("the archive unpacks to more than %d TiB", maxBytes>>40)
	}
	x.bytes += size
	dir, err := x.in(parent)
	if err != nil {
		return err
	}
	if size <= smallFile {
		data := (<-x.write.free)[:size]
		if _, err := io.ReadFull(r, data); err != nil {
			return x.src.blame(err)
		}
		return x.write.hand(smallWrite{dir.hold(), d, data})
	}
	blocks, err := dir.write(d, func(f *os.File) (int64, error) { return fill(f, size, r, x.buf) })
	x.blocks += blocks
	if cut, ok := errors.AsType[readError](err); ok {
		return x.src.blame(cut.error)
	}
	return err
}

// notContainerImage refuses what would import well and never boot.
func (x *extractor) notContainerImage() error {
	has := func(name string) bool { return x.root.children[name] != nil }
	if (has("manifest.json") || has("oci-layout") || has("index.json")) && !has("etc") && !has("bin") && !has("usr") {
		return api.BadRequest("the archive is a container image in layers, not a root filesystem").
			WithHint("export a container instead: docker create IMAGE, then docker export CONTAINER")
	}
	return nil
}
