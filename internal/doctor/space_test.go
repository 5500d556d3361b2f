package doctor

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/paths"
)

const plentyOf = 1 << 40

func TestRoom(t *testing.T) {
	for name, c := range map[string]struct {
		p                   place
		free, inodes, nodes uint64
		status              api.CheckStatus
		says                string
	}{
		"plenty":            {helperPlace, plentyOf, 1e6, 1e6, "pass", "1048576 MiB and 1000000 inodes are left in " + paths.HelperDir},
		"btrfs":             {helperPlace, plentyOf, 0, 0, "pass", "1048576 MiB are left"},
		"little":            {helperPlace, helperPlace.low - 1, 1e6, 1e6, "warn", "255 MiB"},
		"just enough":       {helperPlace, helperPlace.low, 1e6, fewFiles, "pass", "256 MiB"},
		"none":              {helperPlace, 0, 1e6, 1e6, "fail", "0 MiB"},
		"few inodes":        {helperPlace, plentyOf, 1e6, fewFiles - 1, "warn", "999 inodes"},
		"no inode":          {helperPlace, plentyOf, 1e6, 0, "fail", "0 inodes"},
		"a full journal":    {journalPlaces[0], 0, 1e6, 0, "warn", "left in /var/log/journal"},
		"a journal in /run": {journalPlaces[1], 64 << 20, 1e6, 1e6, "pass", "left in /run/log/journal"},
	} {
		got := c.p.judge(c.free, c.inodes, c.nodes)
		check(t, name, got, c.status, c.says)
		if (got.Fix == "") != (c.status == api.CheckPass) {
			t.Errorf("%s: fix %q", name, got.Fix)
		}
	}
}

// otherDisk is a directory on another filesystem than the test's.
func otherDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "banger") //nolint:usetesting // on another filesystem
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var here, there unix.Stat_t
	if unix.Stat(t.TempDir(), &here) != nil || unix.Stat(dir, &there) != nil || here.Dev == there.Dev {
		t.Skip("all is on one filesystem")
	}
	return dir
}

func TestOtherFilesystems(t *testing.T) {
	h := tree(t, map[string]string{paths.StateDir + "/": "", paths.HelperDir + "/": ""})
	check(t, "one", h.otherFilesystems(), "pass", "all is on the filesystem of "+paths.StateDir)
	put(t, h, "/run/log/journal/", "")
	check(t, "with a journal", h.otherFilesystems(), "pass", "all is on")

	elsewhere := otherDisk(t)
	move := func(path string) {
		if err := os.Remove(h.at(path)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(elsewhere, h.at(path)); err != nil {
			t.Fatal(err)
		}
	}
	move("/run/log/journal")
	if got := h.otherFilesystems().Found; !strings.Contains(got, "left in /run/log/journal") || strings.Contains(got, paths.HelperDir) {
		t.Errorf("the journal alone: %q", got)
	}
	move(paths.HelperDir)
	if got := h.otherFilesystems().Found; !strings.Contains(got, "left in "+paths.HelperDir) || strings.Contains(got, "journal") {
		t.Errorf("both on another: %q", got)
	}
	put(t, h, "/var/log/journal/", "")
	if got := h.otherFilesystems().Found; strings.Contains(got, "journal") {
		t.Errorf("the journal is with the state: %q", got)
	}
}

func TestFilesystemsThatCannotBeSeen(t *testing.T) {
	h := tree(t, map[string]string{paths.StateDir + "/": ""})
	got := h.otherFilesystems()
	check(t, "missing", got, "warn", "how much room is in "+paths.HelperDir+" cannot be told")
	if got.Fix != reinstall {
		t.Errorf("fix: %q", got.Fix)
	}
	if err := os.Symlink("banger-helper", h.at(paths.HelperDir)); err != nil { // too many links, also for root
		t.Fatal(err)
	}
	put(t, h, "/var/log/journal/", "")
	got = h.otherFilesystems()
	check(t, "unseen", got, "warn", "cannot be told")
	if !strings.Contains(got.Fix, "sudo df "+paths.HelperDir) {
		t.Errorf("fix: %q", got.Fix)
	}
}
