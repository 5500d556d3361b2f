package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/paths"
)

// place is a directory beside the state directory that is written for VMs.
type place struct {
	path string
	low  uint64 // bytes: with fewer doctor warns
	fix  string
	// vital: nothing starts without it.
	vital bool
}

// Kernels with their initrds are some tens of MiB each; a jail is a few KiB.
var helperPlace = place{paths.HelperDir, 256 << 20, "make room on the filesystem of " + paths.HelperDir, true}

const vacuum = "make room there, or sudo journalctl --namespace=banger --vacuum-size=64M"

// journalPlaces are where journald writes: the first that there is. It writes
// over its oldest.
var journalPlaces = []place{{"/var/log/journal", 64 << 20, vacuum, false}, {"/run/log/journal", 64 << 20, vacuum, false}}

// full is what is left where nothing can be written any more.
const full = 1 << 20

// fewFiles is how many inodes should be left where no images are.
const fewFiles = 1000

// otherFilesystems is about room where the checks of the state directory do not
// look. Each filesystem is looked at once.
func (h Host) otherFilesystems() Finding {
	var all []Finding
	var seen []uint64
	var st unix.Stat_t
	if unix.Stat(h.at(paths.StateDir), &st) == nil { // if not, check state says so
		seen = append(seen, st.Dev)
	}
	for _, p := range []place{helperPlace, h.journal()} {
		if p.path == "" {
			continue
		}
		if err := unix.Stat(h.at(p.path), &st); err != nil {
			all = append(all, unseen(p, err))
			continue
		}
		if slices.Contains(seen, st.Dev) {
			continue
		}
		seen = append(seen, st.Dev)
		fsys, err := h.statfs(p.path)
		if err != nil {
			all = append(all, unseen(p, err))
			continue
		}
		all = append(all, p.judge(fsys.Bavail*uint64(fsys.Bsize), fsys.Files, fsys.Ffree))
	}
	if len(all) == 0 {
		return Pass("all is on the filesystem of %s", paths.StateDir)
	}
	return together(all)
}

func (h Host) journal() place {
	for _, p := range journalPlaces {
		if _, err := os.Lstat(h.at(p.path)); !errors.Is(err, fs.ErrNotExist) {
			return p
		}
	}
	return place{} // journald keeps nothing
}

func unseen(p place, err error) Finding {
	fix := "look at it as root: sudo df " + p.path
	if errors.Is(err, fs.ErrNotExist) {
		fix = reinstall
	}
	return Warn(fix, "how much room is in %s cannot be told: %v", p.path, err)
}

// judge is about bytes, inodes in all (0 where they are made as needed), and
// inodes that are free.
func (p place) judge(free, inodes, freeInodes uint64) Finding {
	left := fmt.Sprintf("%d MiB", free>>20)
	if inodes > 0 {
		left += fmt.Sprintf(" and %d inodes", freeInodes)
	}
	f := Warn(p.fix, "%s are left in %s", left, p.path)
	switch {
	case p.vital && (free < full || inodes > 0 && freeInodes == 0):
		f.Status = api.CheckFail
	case free >= p.low && (inodes == 0 || freeInodes >= fewFiles):
		return Pass("%s are left in %s", left, p.path)
	}
	return f
}
