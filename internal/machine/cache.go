package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// cache keeps costly results as directories named KIND-HASH, where the hash
// covers what the result was made of: files, and how the tools are called. An
// entry is made under another name and renamed, so what has the right name is whole.
type cache struct{ dir string }

func openCache() (cache, error) {
	dir, err := xdgDir("XDG_CACHE_HOME", ".cache")
	if err != nil {
		return cache{}, err
	}
	return cache{filepath.Join(dir, "banger")}, nil
}

// kept is how many entries of a kind stay: the newest, and one before it for
// whoever goes back and forth between two states of the source.
const kept = 2

// entry returns the directory of kind and hash, and lets build fill it first
// where it is not there. Of two processes that want the same, one builds and
// the other waits.
func (c cache) entry(ctx context.Context, kind, hash string, p Progress, build func(dir string) error) (string, error) {
	dir := filepath.Join(c.dir, kind+"-"+hash[:16])
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cannot use cache: %w", err)
	}
	unlock, err := waitLock(ctx, filepath.Join(c.dir, "."+kind+".lock"), func() {
		p.step("waiting for another command that makes the %s", kind)
	})
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil { // made while we waited
		return dir, nil
	}
	if err := c.prune(kind, kept-1); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(c.dir, "."+kind+"-")
	if err != nil {
		return "", fmt.Errorf("cannot use cache: %w", err)
	}
	defer removeTree(tmp)
	if err := build(tmp); err != nil {
		return "", err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("cannot use cache: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", fmt.Errorf("cannot use cache: %w", err)
	}
	return dir, nil
}

// prune removes all entries of kind but the newest keep, and what killed
// processes left. Machines hold links of their own to what they use. The
// caller has the kind's lock, so whatever is unfinished has no maker any more.
func (c cache) prune(kind string, keep int) error {
	list, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("cannot read cache: %w", err)
	}
	var whole []fs.FileInfo
	for _, d := range list {
		switch {
		case strings.HasPrefix(d.Name(), "."+kind+"-"):
			left := filepath.Join(c.dir, d.Name())
			if err := killRun(left); err != nil { // a guest whose maker was killed
				return err
			}
			removeTree(left)
		case strings.HasPrefix(d.Name(), kind+"-"):
			info, err := d.Info()
			if err != nil {
				return fmt.Errorf("cannot read cache: %w", err)
			}
			whole = append(whole, info)
		}
	}
	slices.SortFunc(whole, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, info := range whole[min(keep, len(whole)):] {
		removeTree(filepath.Join(c.dir, info.Name()))
	}
	return nil
}

// removeTree removes what it can. What remains has a name nobody looks for and
// is tried again by the next prune.
func removeTree(dir string) { _ = os.RemoveAll(dir) }

// linkOrCopy gives the file old a second name. The two share their content,
// which is never written again, wherever the filesystem allows.
func linkOrCopy(ctx context.Context, old, name string) error {
	if os.Link(old, name) == nil {
		return nil
	}
	// Another filesystem. cp keeps holes, which a disk mostly consists of.
	return runTool(ctx, command{argv: []string{"cp", "--sparse=always", "--reflink=auto", old, name}})
}
