//go:build lab

package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/paths"
)

// treasure is something that must outlive a jail, with all that is told of it.
type treasure struct {
	t    *testing.T
	dir  string
	seen string
}

// newTreasure makes it beside the jails, so that hard links reach it.
func newTreasure(t *testing.T) *treasure {
	t.Helper()
	dir, err := os.MkdirTemp(paths.StateDir, "treasure-") //nolint:usetesting // on the filesystem of the jails
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &treasure{t: t, dir: dir}
	things := map[string]os.FileMode{"file": 0o640, "sub/inner": 0o600, "sub/deeper/inmost": 0o604}
	for n := range 20 { // so that a removal meets one before it meets a directory that holds it up
		things[strconv.Itoa(n)] = 0o600
	}
	for name, mode := range things {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte("keep "+name), mode), os.Chmod(path, mode), os.Chown(path, 4711, 4712)); err != nil {
			t.Fatal(err)
		}
	}
	w.seen = w.look()
	return w
}

// look has a line for each file: what it is, whose, since when, and what is in it.
func (w *treasure) look() string {
	var all []string
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		var content []byte
		if d.Type().IsRegular() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		all = append(all, fmt.Sprintf("%s %o %d:%d inode %d, %d names, written %d.%d: %s", path, st.Mode, st.Uid, st.Gid, st.Ino, st.Nlink, st.Mtim.Sec, st.Mtim.Nsec, content))
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

func (w *treasure) wantWhole() {
	w.t.Helper()
	if now := w.look(); now != w.seen {
		w.t.Errorf("was\n%s\nis\n%s", w.seen, now)
	}
}

// Whatever is mounted in a jail, wherever: the helper refuses with the name of the
// place, the jail keeps its name, and a removal that has not seen the mount in the
// table stops at it.
func TestLabAnyMountInAJailIsKept(t *testing.T) {
	for name, c := range map[string]struct {
		at   string // in the jail
		make func(w *treasure, at string) error
	}{
		"a file on a file": {"root/rootfs", func(w *treasure, at string) error {
			return errors.Join(os.WriteFile(at, nil, 0o600), unix.Mount(w.dir+"/file", at, "", unix.MS_BIND, ""))
		}},
		"a file in the jail itself": {"mark", func(w *treasure, at string) error {
			return errors.Join(os.WriteFile(at, nil, 0o600), unix.Mount(w.dir+"/file", at, "", unix.MS_BIND, ""))
		}},
		"a directory": {"root/run", func(w *treasure, at string) error {
			return errors.Join(os.Mkdir(at, 0o700), unix.Mount(w.dir, at, "", unix.MS_BIND, ""))
		}},
		"three levels down": {"root/a/b/c", func(w *treasure, at string) error {
			return errors.Join(os.MkdirAll(at, 0o700), unix.Mount(w.dir, at, "", unix.MS_BIND, ""))
		}},
		"behind a name with a space": {"root/a b/\\040c", func(w *treasure, at string) error {
			return errors.Join(os.MkdirAll(at, 0o700), unix.Mount(w.dir, at, "", unix.MS_BIND, ""))
		}},
		"read only": {"root/a/ro", func(w *treasure, at string) error {
			return errors.Join(os.MkdirAll(at, 0o700), unix.Mount(w.dir, at, "", unix.MS_BIND, ""),
				unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
		}},
		"the jail itself": {"", func(w *treasure, at string) error { return unix.Mount(w.dir, at, "", unix.MS_BIND, "") }},
		"the jail's root": {"root", func(w *treasure, at string) error { return unix.Mount(w.dir, at, "", unix.MS_BIND, "") }},
	} {
		t.Run(name, func(t *testing.T) {
			l, w := newLife(t), newTreasure(t)
			jail := filepath.Join(paths.JailDir, l.id)
			at := filepath.Join(jail, c.at)
			l.must(os.MkdirAll(filepath.Join(jail, "root"), 0o711))
			plain := filepath.Join(jail, "root/vmlinux")
			l.must(os.WriteFile(plain, nil, 0o600))
			defer unmountBelow(t, jail)
			l.must(c.make(w, at))
			for verb, call := range map[string]func() error{
				"cleanup": func() error { return l.c.Cleanup(t.Context(), l.id) },
				"release": func() error { return l.c.Release(t.Context(), l.id) },
			} {
				err := call()
				if code(err) != api.CodeConflict || !strings.Contains(err.Error(), "is mounted at "+at) || !strings.Contains(err.Error(), "not removed") {
					t.Errorf("vm.%s: %v", verb, err)
				}
			}
			w.wantWhole()
			if _, err := os.Lstat(plain); err != nil && c.at != "" && c.at != "root" { // there the mount hides it
				t.Errorf("the rest of a jail that is kept: %v", err)
			}
			// The second guard alone, as if the mount had come after the first. It may
			// have moved directories by then, and the mount with them.
			parent, err := os.Open(paths.JailDir)
			l.must(err)
			defer parent.Close()
			if err := removeTree(parent, l.id); err == nil {
				t.Error("removeTree went through a mount")
			} else {
				t.Logf("removeTree: %v", err)
			}
			w.wantWhole()
			if n := unmountBelow(t, jail); n != 1 {
				t.Errorf("%d mounts are left", n)
			}
			w.wantWhole()
			l.must(l.c.Cleanup(t.Context(), l.id))
			l.gone(sudden)
			w.wantWhole()
		})
	}
}

// unmountBelow unmounts what is mounted at a directory and below it, and tells how
// many those were.
func unmountBelow(t *testing.T, dir string) int {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if err := unix.Unmount(m.Mountpoint, 0); err != nil {
			t.Errorf("cannot unmount %s: %v", m.Mountpoint, err)
		}
	}
	return len(mounts)
}

// A moment between two calls is hit by luck: so many names, so often. Without
// RESOLVE_NO_SYMLINKS a link is followed in most rounds, also on one processor.
const (
	sweepRounds = 12
	sweepNames  = 300
)

// Names in the jail are directories at one moment and links out of it at the next,
// while it is removed. Nothing outside is touched, and in the end the jail goes.
func TestLabSweepUnderExchanges(t *testing.T) {
	l, w := newLife(t), newTreasure(t)
	jail := filepath.Join(paths.JailDir, l.id)
	parent, err := os.Open(paths.JailDir)
	l.must(err)
	defer parent.Close()
	swaps, early, whole := 0, 0, 0
	for round := range sweepRounds {
		aside, err := os.MkdirTemp(paths.StateDir, "aside-") //nolint:usetesting // on the filesystem of the jails
		l.must(err)
		var pairs [][2]string
		pair := func(dir string) {
			l.must(os.MkdirAll(dir+"/sub", 0o711))
			l.must(os.WriteFile(dir+"/file", nil, 0o600))
			link := fmt.Sprint(aside, "/", len(pairs))
			l.must(os.Symlink(w.dir, link))
			pairs = append(pairs, [2]string{dir, link})
		}
		// At the top, where directories are opened, and below, from where they are moved up.
		for n := range sweepNames {
			pair(fmt.Sprint(jail, "/", n))
		}
		for _, dir := range []string{"/root/run", "/root/run/a", "/root/run/a/b", "/root/x/y/z"} {
			pair(jail + dir)
		}
		stop := exchanger(t, pairs)
		// Every other one by the helper itself.
		if round%2 == 0 {
			err = removeTree(parent, l.id)
		} else {
			err = l.c.Cleanup(t.Context(), l.id)
		}
		swaps += stop()
		if err != nil {
			early++
			t.Logf("round %d: %v", round, err)
		} else if _, err := os.Lstat(jail); errors.Is(err, fs.ErrNotExist) {
			whole++
		} else {
			t.Errorf("it says that the jail is removed: %v", err)
		}
		w.wantWhole()
		l.must(removeTree(parent, l.id)) // nobody interferes any more
		l.must(os.RemoveAll(aside))
		w.wantWhole()
		if t.Failed() {
			break
		}
	}
	t.Logf("%d exchanges; %d removals went through, %d gave up", swaps, whole, early)
	if swaps < sweepNames {
		t.Errorf("%d exchanges only", swaps)
	}
	l.must(l.c.Cleanup(t.Context(), l.id))
	l.gone(sudden)
}

// exchanger exchanges pairs of names as fast as it can, and returns what ends it
// and tells how often it did.
func exchanger(t *testing.T, pairs [][2]string) func() int {
	t.Helper()
	begun, quit := make(chan struct{}), make(chan struct{})
	var task sync.WaitGroup
	done := 0
	task.Go(func() {
		var once sync.Once
		for {
			select {
			case <-quit:
				return
			default:
			}
			for _, p := range pairs {
				if unix.Renameat2(unix.AT_FDCWD, p[0], unix.AT_FDCWD, p[1], unix.RENAME_EXCHANGE) == nil {
					done++
					once.Do(func() { close(begun) })
				}
			}
		}
	})
	select {
	case <-begun:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is exchanged")
	}
	return func() int {
		close(quit)
		task.Wait()
		return done
	}
}

// A tree that is deeper than any path may be, and one that is wide at each level,
// cost the helper a bounded time and no depth of its own.
func TestLabDeepJailIsRemoved(t *testing.T) {
	l, w := newLife(t), newTreasure(t)
	root := filepath.Join(paths.JailDir, l.id, "root")
	l.must(os.MkdirAll(root, 0o711))
	const depth = 2000 // 34 KB of path
	deep(t, root, depth)
	// The inmost directory has a link out of the jail and one that leads up.
	at, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	l.must(err)
	for range depth {
		next, err := unix.Openat(at, "a-directory-name", unix.O_PATH|unix.O_DIRECTORY, 0)
		l.must(err)
		l.must(unix.Symlinkat(w.dir, at, "away"))
		l.must(unix.Symlinkat("..", at, "up"))
		l.must(unix.Close(at))
		at = next
	}
	l.must(unix.Symlinkat(w.dir, at, "away"))
	l.must(unix.Close(at))
	begun := time.Now()
	l.timed("vm.cleanup", func() error { return l.c.Cleanup(t.Context(), l.id) })
	if took := time.Since(begun); took > 2*time.Minute {
		t.Errorf("it took %s", took)
	}
	w.wantWhole()
	l.gone(sudden)
}

// A file in a jail that has another name outside loses the one in the jail, and
// nothing else: blobs are such files.
func TestLabHardLinksOfAJail(t *testing.T) {
	l, w := newLife(t), newTreasure(t)
	root := filepath.Join(paths.JailDir, l.id, "root")
	l.must(os.MkdirAll(root+"/run/a", 0o711))
	for _, name := range []string{"vmlinux", "run/api.sock", "run/a/x"} {
		l.must(os.Link(w.dir+"/file", filepath.Join(root, name)))
	}
	l.must(os.Link(w.dir+"/sub/deeper/inmost", filepath.Join(root, "inmost")))
	var st unix.Stat_t
	l.must(unix.Lstat(w.dir+"/file", &st))
	if st.Nlink != 4 {
		t.Fatalf("it has %d names", st.Nlink)
	}
	l.must(l.c.Cleanup(t.Context(), l.id))
	l.gone(sudden)
	w.wantWhole()
}
