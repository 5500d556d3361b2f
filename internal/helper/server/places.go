package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/paths"
)

// Places are the directories the helper works in. All but State belong to
// root, and nobody else may write in them or in any directory above them.
type Places struct {
	State string // the owner's state directory
	Jails string // one directory for each VM, the jailer's "firecracker/ID"
	Blobs string // on the same mount as Jails, since hard links do not cross mounts
	Slots string // the registry file
	Ports string // the table of ports
	Exit  string // exit records; everybody may read them
	Locks string
}

// InstalledPlaces are the places of an installed banger.
func InstalledPlaces() Places {
	return Places{
		State: paths.StateDir,
		Jails: paths.JailDir,
		Blobs: paths.BlobDir,
		Slots: paths.HelperDir + "/slots.json",
		Ports: paths.HelperRunDir + "/ports.json",
		Exit:  paths.ExitDir,
		Locks: paths.HelperRunDir + "/lock",
	}
}

// rootDir is a directory that belongs to root, with its mode.
type rootDir struct {
	path string
	mode os.FileMode
}

// directories are all of the helper's own. The jails' parents are passed
// through by every VM's uid and by the owner, so they are 0711, not 0700.
func (p Places) directories() []rootDir {
	return []rootDir{
		{filepath.Dir(p.Slots), 0o711},
		{filepath.Dir(p.Jails), 0o711}, {p.Jails, 0o711},
		{filepath.Dir(p.Blobs), 0o700}, {p.Blobs, 0o700},
		{p.Exit, 0o755}, {p.Locks, 0o700},
	}
}

// make creates what is missing.
func (p Places) make() error {
	for _, d := range p.directories() {
		if err := makeDir(d.path, d.mode); err != nil {
			return err
		}
	}
	return nil
}

func makeDir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return fmt.Errorf("cannot make %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("cannot stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s must be a directory of uid %d", path, os.Geteuid())
	}
	if os.FileMode(st.Mode).Perm() == mode {
		return nil
	}
	if err := os.Chmod(path, mode); err != nil { // the umask took bits away, or somebody added some
		return fmt.Errorf("cannot set mode of %s: %w", path, err)
	}
	return nil
}

// No regular expressions here: each end of a VM starts this program, which would
// compile them.

func isID(s string) bool { return isHex(s, 12) }

func isSHA256(s string) bool { return isHex(s, 64) }

// isGroup is for names of networks: a label of DNS.
func isGroup(s string) bool {
	const form = "abcdefghijklmnopqrstuvwxyz0123456789-"
	return s != "" && len(s) <= 63 && strings.Trim(s, form) == "" && strings.Trim(s, "-") == s
}

func isHex(s string, length int) bool {
	return len(s) == length && strings.Trim(s, "0123456789abcdef") == ""
}

// checkID is the only gate between a caller's words and the names of units,
// devices and directories that are made of them.
func checkID(id string) error {
	if !isID(id) {
		return api.BadRequest("%.40q is not a VM id: want 12 lower-case hexadecimal digits", id)
	}
	return nil
}

func unitName(id string) string { return "banger-vm-" + id + ".service" }

func (p Places) jail(id string) string { return filepath.Join(p.Jails, id) }

// newFile is how the names of files begin that writeAtomic has not moved yet.
const newFile = ".new-"

// writeAtomic makes the file appear whole or not at all, also after a power
// cut.
func writeAtomic(path string, data []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), newFile+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return errors.Join(f.Close(), syncDir(filepath.Dir(path)))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
