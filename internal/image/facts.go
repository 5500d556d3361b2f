package image

import (
	"archive/tar"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/api"
)

// describe reads off a member's header what its inode shall be.
func describe(h *tar.Header) (*inode, error) {
	ino := &inode{mode: uint32(h.Mode) & 0o7777, uid: uint32(h.Uid), gid: uint32(h.Gid), links: 1,
		// What an inode holds in 32 bits; nobody needs more of an image.
		mtime: min(max(h.ModTime.Unix(), 0), math.MaxInt32)}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		ino.typ = unix.S_IFREG
	case tar.TypeLink:
		return &inode{}, nil // its target describes it
	case tar.TypeDir:
		ino.typ = unix.S_IFDIR
	case tar.TypeFifo:
		ino.typ = unix.S_IFIFO
	case tar.TypeSymlink:
		ino.typ, ino.target, ino.mode = unix.S_IFLNK, h.Linkname, 0o777
		if h.Linkname == "" || len(h.Linkname) > maxTarget || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, api.BadRequest("the archive's member %q is a symbolic link to an impossible name", h.Name)
		}
	case tar.TypeChar, tar.TypeBlock:
		ino.typ = unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			ino.typ = unix.S_IFBLK
		}
		// The kernel's major numbers have 12 bits; debugfs takes 16 for a minor.
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<16 {
			return nil, api.BadRequest("the archive's member %q has an impossible device number", h.Name)
		}
		ino.major, ino.minor = uint32(h.Devmajor), uint32(h.Devminor)
	default:
		return nil, api.BadRequest("the archive's member %q is of the unknown type %q", h.Name, h.Typeflag)
	}
	// The highest number means "no change" to the kernel and is no id.
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return nil, api.BadRequest("the archive's member %q has an impossible owner", h.Name)
	}
	var err error
	ino.xattrs, err = xattrsOf(h)
	return ino, err
}

// Extended attributes of a file must fit into one block.
const (
	maxXattrs     = blockSize - 32
	xattrOverhead = 16 + 3 + 3
)

// xattrsOf returns the extended attributes Linux knows, by name. Others, such
// as those of macOS, mean nothing to a guest.
func xattrsOf(h *tar.Header) ([]xattr, error) {
	var out []xattr
	total := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !knownXattr(name) {
			continue
		}
		total += xattrOverhead + len(name) + len(value)
		if len(name) > maxName || total > maxXattrs || strings.ContainsAny(name, "\x00\r\n") {
			return nil, api.BadRequest("the archive's member %q has extended attributes that ext4 cannot hold", h.Name)
		}
		out = append(out, xattr{name, value})
	}
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

func knownXattr(name string) bool {
	if name == "system.posix_acl_access" || name == "system.posix_acl_default" {
		return true
	}
	for _, space := range []string{"user.", "trusted.", "security."} {
		if rest, ok := strings.CutPrefix(name, space); ok && rest != "" {
			return true
		}
	}
	return false
}
