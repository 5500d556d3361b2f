package install

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"banger/api"
	"banger/internal/paths"
)

// checkPlaces refuses a host on which somebody else than root could exchange
// what root runs and reads: the directories of programs, units and records.
func (h *host) checkPlaces() error {
	for _, dir := range []string{h.layout.Bin, h.layout.Libexec, h.layout.Units, paths.AdminUnits, etcDir,
		paths.HelperDir, filepath.Dir(paths.StateDir), filepath.Dir(cacheDir),
		filepath.Dir(modulesFile), filepath.Dir(udevFile), filepath.Dir(journalFile), filepath.Dir(paths.SysctlFile)} {
		if err := h.checkPlace(dir); err != nil {
			return err
		}
	}
	return nil
}

// checkPlace looks at each directory of a path from the root on. When one is
// found to be root's alone, nobody else can exchange the next one. What is not
// there yet is made by root, below.
func (h *host) checkPlace(dir string) error {
	path := "/"
	for part := range strings.SplitSeq(strings.TrimPrefix(dir, "/"), "/") {
		path = filepath.Join(path, part)
		info, err := os.Lstat(h.at(path))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot examine %s: %w", path, err)
		}
		bad := ""
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			bad = "it is a symlink"
		case !info.IsDir():
			bad = "it is not a directory"
		case h.uidOf(info) != h.rootUID:
			bad = "it does not belong to root"
		case info.Mode().Perm()&0o022 != 0:
			bad = fmt.Sprintf("others than root can write there (mode %04o)", info.Mode().Perm())
		}
		if bad != "" {
			return api.Problemf(http.StatusPreconditionFailed, api.CodePrerequisite, "cannot install banger in %s: %s: %s", dir, path, bad).
				WithHint("make %s a directory of root's that nobody else can write, e.g. `chown root:root %s; chmod 755 %s`", path, path, path)
		}
	}
	return nil
}
