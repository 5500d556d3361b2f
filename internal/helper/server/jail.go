package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/paths"
)

// errJailExists: the jail on disk is not of this launch.
var errJailExists = errors.New("there is a jail already")

// jailRoot is where the jailer puts the VM's root directory.
func (p Places) jailRoot(id string) string { return filepath.Join(p.jail(id), "root") }

// stageJail makes the jail directory before the jailer sees it. Nobody but
// root can write to its parents, so it is new and all of it is ours; that it
// must not exist keeps a jail that somebody else had in his hands from being
// used again (CVE-2026-1386).
func (p Places) stageJail(r vmmBuild) (err error) {
	if err := p.newJail(r.ID); err != nil {
		return err
	}
	root := p.jailRoot(r.ID)
	// The jailer takes over both; run is made early so that it can be watched.
	for _, d := range []string{root, root + filepath.Dir(paths.JailAPI)} {
		if err := makeDir(d, 0o711); err != nil {
			return err
		}
	}
	if err := makeMountPoints(root, r.libraries); err != nil {
		return err
	}
	for _, l := range []struct{ sha, path string }{{r.Kernel, paths.JailKernel}, {r.Initrd, paths.JailInitrd}} {
		if err := p.linkBlob(l.sha, root+l.path); err != nil {
			return err
		}
	}
	for _, d := range r.disks {
		if err := makeNode(root+d.jailPath, r.uid, d); err != nil {
			return err
		}
	}
	return makeFIFO(root+paths.JailMetrics, r.uid)
}

func (p Places) newJail(id string) error {
	err := os.Mkdir(p.jail(id), 0o711)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: %w", errJailExists, api.Conflict("VM %s was not cleaned up", id).WithHint("call vm.cleanup first"))
	}
	if err != nil {
		return fmt.Errorf("cannot make jail: %w", err)
	}
	return makeDir(p.jail(id), 0o711) // in spite of the umask
}

// makeNode makes a node of a disk that the VM's uid can use.
func makeNode(path string, uid int, d device) error {
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(d.dev)); err != nil {
		return fmt.Errorf("cannot make disk node in jail: %w", err)
	}
	if err := os.Lchown(path, uid, uid); err != nil {
		return fmt.Errorf("cannot give disk node to the VM: %w", err)
	}
	return nil
}

// makeFIFO makes what Firecracker writes its metrics to: a pipe that nobody
// reads takes 64 KiB and then no more, where a file would grow.
func makeFIFO(path string, uid int) error {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return fmt.Errorf("cannot make FIFO in jail: %w", err)
	}
	if err := os.Lchown(path, uid, uid); err != nil {
		return fmt.Errorf("cannot give FIFO to the VM: %w", err)
	}
	return nil
}

func (p Places) linkBlob(sha, to string) error {
	unknown := api.Problemf(404, helper.CodeBlobUnknown, "blob %s is not in the store", sha).WithHint("send it with blob.put first")
	blob, err := os.OpenFile(filepath.Join(p.Blobs, sha), unix.O_PATH|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return unknown
	}
	if err != nil {
		return fmt.Errorf("cannot open blob: %w", err)
	}
	defer blob.Close()
	st, err := expect(blob, unix.S_IFREG, 0)
	if err != nil {
		return err
	}
	if st.Mode&0o7777 != 0o444 {
		return fmt.Errorf("blob %s has mode %o, not 444", sha, st.Mode&0o7777)
	}
	if err := unix.Linkat(unix.AT_FDCWD, procFD(blob), unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW); err != nil {
		return fmt.Errorf("cannot link blob into jail: %w", err)
	}
	return nil
}

// procFD names an open file, whatever it is and wherever it has been moved.
func procFD(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// socketInJail is a socket that Firecracker made, and the directories above it,
// each opened with O_PATH.
type socketInJail struct{ root, run, sock *os.File }

// openRoot opens a jail's root directory with O_PATH.
func (p Places) openRoot(id string) (*os.File, error) {
	jail, err := os.OpenFile(p.jail(id), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, api.Conflict("VM %s has no jail", id)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open jail: %w", err)
	}
	defer jail.Close()
	return openIn(jail, "root", unix.O_PATH|unix.O_DIRECTORY, inside|unix.RESOLVE_NO_XDEV)
}

// openSocket walks to a socket in a jail. Everything below the jail's root may
// belong to a VMM that is hostile, which can rename, link and replace there at
// any moment until the jail is sealed. So each step is opened through no
// symlink, is looked at, and is changed by descriptor.
func (p Places) openSocket(id, path string) (s socketInJail, err error) {
	if s.root, err = p.openRoot(id); err != nil {
		return s, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	const flags, resolve = unix.O_PATH, inside | unix.RESOLVE_NO_XDEV
	if s.run, err = openIn(s.root, filepath.Dir(path)[1:], flags|unix.O_DIRECTORY, resolve); err != nil {
		return s, err
	}
	if s.sock, err = openIn(s.run, filepath.Base(path), flags, resolve); errors.Is(err, unix.ENOENT) {
		return s, api.Conflict("VM %s has no %s yet", id, path)
	}
	return s, err
}

func (s socketInJail) close() {
	for _, f := range []*os.File{s.sock, s.run, s.root} {
		if f != nil {
			f.Close()
		}
	}
}

// shareSocket lets the owner, and nobody else of his group, reach a socket that
// Firecracker made in its jail: by an ACL on the socket and on the directories
// above it. A socket must have one name: the VMM could have renamed a file it
// shares with other VMs to the socket's name.
func (p Places) shareSocket(id string, uid, owner int, path string) error {
	s, err := p.openSocket(id, path)
	if err != nil {
		return err
	}
	defer s.close()
	// From the inside out: nothing can be reached before all of it is right.
	if err := share(s.sock, unix.S_IFSOCK, uid, owner, aclRead|aclWrite); err != nil {
		return err
	}
	if err := share(s.run, unix.S_IFDIR, uid, owner, aclSearch); err != nil {
		return err
	}
	return share(s.root, unix.S_IFDIR, uid, owner, aclSearch)
}

func share(f *os.File, kind uint32, uid, owner int, perm uint16) error {
	if err := shareable(f, kind, uid); err != nil {
		return err
	}
	if err := aclFor(perm, owner).set(f); err != nil {
		return err
	}
	return shareable(f, kind, uid)
}

type acl []byte

func (a acl) set(f *os.File) error {
	// By way of /proc: an O_PATH descriptor itself takes no attributes.
	if err := unix.Setxattr(procFD(f), "system.posix_acl_access", a, 0); err != nil {
		return fmt.Errorf("cannot set who may use %s (does the filesystem have POSIX ACLs?): %w", f.Name(), err)
	}
	return nil
}

// Permissions and tags of a POSIX ACL, see acl(5) and linux/posix_acl_xattr.h.
const (
	aclSearch = 1
	aclWrite  = 2
	aclRead   = 4

	aclVersion  = 2
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclMask     = 0x10
	aclOther    = 0x20
)

// aclFor gives perm to some uids beside the file's own user, and nothing to
// anybody else: not to the owner's group, which may have other members.
func aclFor(perm uint16, uids ...int) acl {
	type entry struct {
		tag, perm uint16
		id        uint32
	}
	all := []entry{{aclUserObj, aclRead | aclWrite | perm&aclSearch, math.MaxUint32}}
	slices.Sort(uids)
	for _, uid := range uids {
		all = append(all, entry{aclUser, perm, uint32(uid)})
	}
	all = append(all, entry{aclGroupObj, 0, math.MaxUint32}, entry{aclMask, perm, math.MaxUint32}, entry{aclOther, 0, math.MaxUint32})
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range all {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func shareable(f *os.File, kind uint32, uid int) error {
	st, err := expect(f, kind, uint32(uid))
	if err != nil {
		return err
	}
	if kind != unix.S_IFDIR && st.Nlink != 1 {
		return fmt.Errorf("%s has %d names", f.Name(), st.Nlink)
	}
	return nil
}
