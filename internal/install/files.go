package install

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/paths"
)

// file is one file of the installation as it shall be.
type file struct {
	path string
	mode fs.FileMode
	from string // a copy of this file, or else
	text string // this
	sum  string // sha256 of the content
	bare string // of a stamped file: sha256 without the stamp
}

func textFile(path, text string) file {
	sum := sha256.Sum256([]byte(text))
	return file{path: path, mode: 0o644, text: text, sum: hex.EncodeToString(sum[:])}
}

// hashFile returns the sha256 of a regular file, never following a symlink.
func HashFile(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", path)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("cannot read %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// asWanted reports whether f is on the disk with its content, mode and owner.
func (h *host) asWanted(f file) (bool, error) {
	info, err := os.Lstat(h.at(f.path))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Mode() != f.mode || !h.isRoots(info) { // also everything that is not a regular file
		return false, nil
	}
	sum, err := h.sumOf(f)
	return sum == f.identity(), err
}

// identity is what a file is compared by.
func (f file) identity() string {
	if f.bare != "" {
		return f.bare
	}
	return f.sum
}

// sumOf returns what the file on the disk has for f's identity.
func (h *host) sumOf(f file) (string, error) {
	if f.bare == "" {
		return HashFile(h.at(f.path))
	}
	raw, err := os.ReadFile(h.at(f.path)) // root's, in a directory of root's, see checkPlaces
	return bareSum(raw), err
}

func (h *host) isRoots(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == h.rootUID && int(st.Gid) == h.rootGID
}

// uidOf returns whose a file is.
func (h *host) uidOf(info fs.FileInfo) int {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return int(st.Uid)
}

// outdated returns the files that must be written.
func (h *host) outdated(files []file) ([]file, error) {
	var todo []file
	for _, f := range files {
		ok, err := h.asWanted(f)
		if err != nil {
			return nil, fmt.Errorf("cannot examine %s: %w", f.path, err)
		}
		if !ok {
			todo = append(todo, f)
		}
	}
	return todo, nil
}

// refuseForeign stops before the first change when something is in the way
// that no installation made.
func (h *host) refuseForeign(m *manifest, w wanted, own owner) error {
	foreign, err := h.otherLayout()
	if err != nil {
		return err
	}
	for _, f := range w.files {
		ok, err := h.asWanted(f)
		if err != nil {
			return fmt.Errorf("cannot examine %s: %w", f.path, err)
		}
		if ok {
			continue
		}
		if mine, err := h.isOurs(m, f.path); err != nil {
			return err
		} else if !mine {
			foreign = append(foreign, f.path)
		}
	}
	for _, dir := range stateDirs {
		if mine, err := h.dirIsOurs(m, dir); err != nil {
			return err
		} else if !mine {
			foreign = append(foreign, dir+"/")
		}
	}
	if len(foreign) > 0 {
		return api.Conflict("cannot install banger: these exist and were not written by it, or were changed since:\n  %s", strings.Join(foreign, "\n  ")).
			WithHint("move them away and repeat; own settings for units belong into drop-ins, see `systemctl edit`")
	}
	return h.refuseOtherOwner(own)
}

// otherLayout lists programs and units where the other layout has them. They
// would be taken for ours: by people who type banger, or by systemd, for which a
// unit in one place hides that in the other.
func (h *host) otherLayout() (found []string, err error) {
	other := paths.Distribution
	if h.layout.Packaged {
		other = paths.Local
	}
	o := *h
	o.layout = other
	candidates := []string{o.programPath("banger")}
	for _, name := range programs {
		candidates = append(candidates, o.programPath(name))
	}
	static, err := staticUnits(other, "")
	if err != nil {
		return nil, err
	}
	for _, f := range static {
		candidates = append(candidates, f.path)
	}
	for _, path := range candidates {
		switch _, err := os.Lstat(h.at(path)); {
		case err == nil:
			found = append(found, path)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
			return nil, fmt.Errorf("cannot examine %s: %w", path, err)
		}
	}
	return found, nil
}

// refuseOutdatedPackage stops if the programs and units of a package are not
// those of the running program.
func (h *host) refuseOutdatedPackage(packaged []file) error {
	bad, err := h.outdated(packaged)
	if err != nil || len(bad) == 0 {
		return err
	}
	var names []string
	for _, f := range bad {
		names = append(names, f.path)
	}
	return api.Conflict("cannot install banger: these are not as its package has them:\n  %s", strings.Join(names, "\n  ")).
		WithHint("install the package again")
}

// isOurs reports whether the file is absent or holds what an installation
// wrote.
func (h *host) isOurs(m *manifest, path string) (bool, error) {
	info, err := os.Lstat(h.at(path))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot examine %s: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return false, nil
	}
	sum, err := HashFile(h.at(path))
	if err != nil {
		return false, fmt.Errorf("cannot examine %s: %w", path, err)
	}
	return m.wrote(path, sum), nil
}

func (h *host) dirIsOurs(m *manifest, path string) (bool, error) {
	if m.made(path) {
		return true, nil
	}
	entries, err := os.ReadDir(h.at(path))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot examine %s: %w", path, err)
	}
	return len(entries) == 0, nil
}

// refuseOtherOwner protects the VMs that an earlier installation left behind.
func (h *host) refuseOtherOwner(own owner) error {
	for _, d := range h.directories(own, nil) {
		if d.uid != own.uid || d.shared {
			continue
		}
		var st unix.Stat_t
		err := unix.Lstat(h.at(d.path), &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot examine %s: %w", d.path, err)
		}
		if int(st.Uid) == h.rootUID && isEmpty(h.at(d.path)) { // see makeDir
			continue
		}
		if int(st.Uid) != own.uid {
			return api.Conflict("cannot install banger for %s: %s belongs to uid %d", own.name, d.path, st.Uid).
				WithHint("install it for that user, or remove what is there with `banger system uninstall --purge`")
		}
	}
	return nil
}

// writeFile replaces the file in one step: whoever runs or reads the old one
// keeps it whole.
func (h *host) writeFile(f file) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot write %s: %w", f.path, err)
		}
	}()
	var content io.Reader = strings.NewReader(f.text)
	if f.from != "" {
		source, err := os.Open(f.from)
		if err != nil {
			return err
		}
		defer source.Close()
		content = source
	}
	sum := sha256.New()
	return replaceFile(h.at(f.path), f.mode, h.rootUID, h.rootGID, func(w io.Writer) error {
		if _, err := io.Copy(io.MultiWriter(w, sum), content); err != nil {
			return err
		}
		if hex.EncodeToString(sum.Sum(nil)) != f.sum {
			return fmt.Errorf("%s changed while it was being copied", f.from)
		}
		return nil
	})
}

// replaceFile writes beside path, syncs and renames, so that after a crash the
// file is the old or the new one.
func replaceFile(path string, mode fs.FileMode, uid, gid int, fill func(io.Writer) error) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".banger-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	err = fill(tmp)
	if err == nil {
		err = errors.Join(tmp.Chown(uid, gid), tmp.Chmod(mode), tmp.Sync())
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// makeEtc makes the directory of the manifest, the only thing that cannot be
// noted before it is there. An empty one is what a run left that was killed.
func (h *host) makeEtc(m *manifest) error {
	mine, err := h.dirIsOurs(m, etcDir)
	if err != nil {
		return err
	}
	if mine {
		m.note(etcDir)
	}
	return h.makeDir(directory{path: etcDir, mode: 0o755})
}

// announceDirs notes the directories that are about to be made.
func (h *host) announceDirs(m *manifest, dirs []directory) error {
	for _, d := range dirs {
		switch _, err := os.Lstat(h.at(d.path)); {
		case errors.Is(err, fs.ErrNotExist), err == nil && slices.Contains(stateDirs, d.path): // it is empty, see dirIsOurs
			m.note(d.path)
		case err != nil:
			return fmt.Errorf("cannot examine %s: %w", d.path, err)
		}
	}
	return nil
}

func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) == 0
}

// makeDir makes a directory or checks the one that is there. Some lie in a
// directory that the owner controls and could turn against root with a link,
// so everything after mkdir is done and checked on a descriptor.
func (h *host) makeDir(want directory) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot make directory %s: %w", want.path, err)
		}
	}()
	uid, gid := want.uid, want.gid
	if uid == 0 {
		uid, gid = h.rootUID, h.rootGID
	}
	err = os.Mkdir(h.at(want.path), want.mode) // at once as it shall be, should we be killed now; see thisHost
	made := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !made && want.shared {
		return nil
	}
	d, err := os.OpenFile(h.at(want.path), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return err
	}
	switch {
	case made && int(st.Uid) != h.rootUID:
		return fmt.Errorf("somebody put another one in its place")
	case made:
		if err := errors.Join(d.Chown(uid, gid), d.Chmod(want.mode)); err != nil {
			return err
		}
		h.say("made %s", want.path)
		return nil
	case int(st.Uid) == h.rootUID && uid != h.rootUID && isEmpty(fmt.Sprintf("/proc/self/fd/%d", d.Fd())):
		// A run was killed between two of these calls.
		return errors.Join(d.Chown(uid, gid), d.Chmod(want.mode))
	case int(st.Uid) != uid:
		return fmt.Errorf("it belongs to uid %d, want %d", st.Uid, uid)
	case fs.FileMode(st.Mode&0o7777) != want.mode:
		h.say("changed the mode of %s from %04o to %04o", want.path, st.Mode&0o7777, want.mode)
		return d.Chmod(want.mode)
	}
	return nil
}
