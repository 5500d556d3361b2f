package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/installed"
	"banger/internal/paths"
	"banger/internal/version"
)

// Status is what is installed and how it does.
type Status struct {
	Installed bool   `json:"installed"`
	Program   string `json:"program_version"` // of the banger that was asked

	Version     string `json:"version,omitempty"`
	InstalledAt string `json:"installed_at,omitempty"`
	Programs    string `json:"programs,omitempty"` // their directory
	// Packaged programs and units belong to the package manager.
	Packaged bool   `json:"packaged"`
	Owner    string `json:"owner,omitempty"`
	UID      int    `json:"uid,omitempty"`
	UIDBase  int    `json:"uid_base,omitempty"`
	UIDCount int    `json:"uid_count,omitempty"`
	Bridge   string `json:"bridge,omitempty"`
	Network  string `json:"network,omitempty"`

	Socket   *SocketStatus `json:"socket,omitempty"`
	Services []UnitStatus  `json:"services,omitempty"`
	VMs      int           `json:"running_vms"`

	// Changed is what is not as it was installed.
	Changed []Change `json:"changed,omitempty"`
	// Unfinished: an installation or upgrade was cut off.
	Unfinished bool `json:"unfinished"`
	// Left is what an uninstall left for the next installation.
	Left []string `json:"left,omitempty"`
}

// SocketStatus is the socket that bangerd answers at.
type SocketStatus struct {
	Path    string `json:"path"`
	Present bool   `json:"present"`
	UID     int    `json:"uid,omitempty"`
	Mode    string `json:"mode,omitempty"`
}

// UnitStatus is what systemd says of a unit.
type UnitStatus struct {
	Unit    string `json:"unit"`
	Active  string `json:"active"`            // ActiveState
	Enabled string `json:"enabled,omitempty"` // UnitFileState
	// Version wrote the unit's text as it is; later ones had nothing to change.
	Version string `json:"version,omitempty"`
	// Needed runs all the time; others come and go with the work.
	Needed bool `json:"needed"`
}

// Change is a difference between what was installed and what is there.
type Change struct {
	Path string `json:"path"`
	What string `json:"what"` // ChangeX
}

// Kinds of changes.
const (
	ChangeContent = "changed"
	ChangeGone    = "missing"
	ChangeRights  = "owner or mode changed"
	ChangeAdded   = "own settings" // a drop-in, which is how it should be done
)

// Healthy reports whether all of an installation is there and runs that has to.
// Changes by hand may be meant.
func (s Status) Healthy() bool {
	return s.Installed && !s.Unfinished && !slices.ContainsFunc(s.Services, func(u UnitStatus) bool {
		return u.Needed && u.Active != "active"
	})
}

// Examine tells the state of this host's installation. It needs no rights and
// changes nothing.
func Examine(ctx context.Context) (Status, error) {
	return realHost(io.Discard).examine(ctx)
}

func (h *host) examine(ctx context.Context) (Status, error) {
	s := Status{Program: version.Version}
	m, err := h.loadManifest()
	if err != nil {
		return s, err
	}
	r, ok, err := h.oldRecord()
	if err != nil {
		return s, err
	}
	if !ok || len(m.Files[paths.InstallFile]) == 0 {
		s.Left, err = h.left(m)
		return s, err
	}
	s.Installed, s.Unfinished = true, len(m.Pending) > 0
	s.Version, s.InstalledAt, s.Programs = r.Version, r.InstalledAt, filepath.Dir(r.Firecracker)
	s.Owner, s.UID, s.UIDBase, s.UIDCount, s.Bridge, s.Network = r.Owner, r.UID, r.UIDBase, r.UIDCount, r.Bridge, r.Network
	// Whatever banger is asked: what is installed counts.
	there := *h
	there.layout = paths.LayoutOf(r.Firecracker)
	s.Packaged = there.layout.Packaged
	err = there.examineParts(ctx, &s, m, r)
	return s, err
}

func (h *host) examineParts(ctx context.Context, s *Status, m *manifest, r installed.Record) (err error) {
	if s.Socket, err = h.socketStatus(); err != nil {
		return err
	}
	if s.Services, err = h.unitStatuses(ctx); err != nil {
		return err
	}
	vms, err := h.matching(ctx, "banger-vm-*.service")
	if err != nil {
		return err
	}
	s.VMs = len(vms)
	s.Changed, err = h.changes(m)
	return err
}

func (h *host) socketStatus() (*SocketStatus, error) {
	s := &SocketStatus{Path: paths.DaemonSocket}
	info, err := os.Lstat(h.at(paths.DaemonSocket))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot examine bangerd's socket: %w", err)
	}
	s.Present, s.UID, s.Mode = info.Mode()&fs.ModeSocket != 0, h.uidOf(info), fmt.Sprintf("%04o", info.Mode().Perm())
	return s, nil
}

func (h *host) unitStatuses(ctx context.Context) (list []UnitStatus, err error) {
	add := func(unit string, needed bool) error {
		state, err := h.unitState(ctx, unit)
		if err != nil {
			return fmt.Errorf("cannot ask systemd for %s: %w", unit, err)
		}
		list = append(list, UnitStatus{Unit: unit, Active: state.state, Enabled: state.file, Needed: needed,
			Version: h.versionOf(h.unitPath(unit))})
		return nil
	}
	for _, s := range services {
		err = errors.Join(err, add(s.name+".socket", true), add(s.name+".service", s.always))
		for _, extra := range s.more {
			err = errors.Join(err, add(extra, false))
		}
	}
	return list, errors.Join(err, add(guestsUnit, true))
}

// versionOf reads the stamp of a file; "" if it has none that can be read.
func (h *host) versionOf(path string) string {
	raw, err := os.ReadFile(h.at(path))
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	words, ok := strings.CutPrefix(first, stamp)
	if !ok {
		return ""
	}
	written, _, _ := strings.Cut(words, " ")
	return written
}

// changes compares the disk with what installations noted.
func (h *host) changes(m *manifest) (list []Change, err error) {
	for _, path := range slices.Sorted(maps.Keys(m.Files)) {
		if path == paths.ConfigFile {
			continue // it is there to be changed
		}
		sums := m.Files[path]
		err := h.compare(&list, file{path: path, sum: sums[len(sums)-1]})
		if err != nil {
			return nil, err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(m.Package)) {
		f := file{path: path, sum: m.Package[path]}
		if within(h.layout.Units, path) {
			f.bare = f.sum
		}
		if err := h.compare(&list, f); err != nil {
			return nil, err
		}
	}
	for _, dir := range m.Dirs {
		if h.belowState(dir) {
			continue // not everybody can look in there
		}
		if _, err := os.Lstat(h.at(dir)); errors.Is(err, fs.ErrNotExist) {
			list = append(list, Change{dir, ChangeGone})
		} else if err != nil {
			return nil, fmt.Errorf("cannot examine %s: %w", dir, err)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(m.Lines)) {
		raw, err := os.ReadFile(h.at(path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cannot examine the reserved ids: %w", err)
		}
		if !slices.Contains(strings.Split(string(raw), "\n"), m.Lines[path]) {
			list = append(list, Change{path + ": " + m.Lines[path], ChangeGone})
		}
	}
	added, err := h.dropIns(m)
	return append(list, added...), err
}

func (h *host) belowState(dir string) bool {
	return slices.ContainsFunc(stateDirs, func(s string) bool { return within(s, dir) && s != dir })
}

// compare adds what is different about a file.
func (h *host) compare(list *[]Change, want file) error {
	info, err := os.Lstat(h.at(want.path))
	if errors.Is(err, fs.ErrNotExist) {
		*list = append(*list, Change{want.path, ChangeGone})
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot examine %s: %w", want.path, err)
	}
	if !info.Mode().IsRegular() {
		*list = append(*list, Change{want.path, ChangeContent})
		return nil
	}
	if info.Mode().Perm()&0o022 != 0 || !h.isRoots(info) {
		*list = append(*list, Change{want.path, ChangeRights})
	}
	sum, err := h.sumOf(want)
	if err != nil {
		return fmt.Errorf("cannot examine %s: %w", want.path, err)
	}
	if sum != want.identity() {
		*list = append(*list, Change{want.path, ChangeContent})
	}
	return nil
}

// dropIns finds settings of the administrator for our units, and units that hide
// a package's.
func (h *host) dropIns(m *manifest) (list []Change, err error) {
	names := []string{guestsUnit, "banger.slice", "banger-vm-*.service", "banger-fsck-*.service", "banger-kvm-*.service"}
	for _, s := range services {
		names = append(append(names, s.name+".service", s.name+".socket"), s.more...)
	}
	for _, top := range []string{paths.AdminUnits, "/run/systemd/system"} {
		for _, name := range names {
			for _, pattern := range []string{name, name + ".d/*.conf"} {
				found, err := filepath.Glob(h.at(filepath.Join(top, pattern)))
				if err != nil {
					return nil, fmt.Errorf("cannot look for drop-ins: %w", err)
				}
				for _, path := range found {
					if path = strings.TrimPrefix(path, h.root); !m.has(path) {
						list = append(list, Change{path, ChangeAdded})
					}
				}
			}
		}
	}
	return list, nil
}

// left names everything of ours that is still there after an uninstall.
func (h *host) left(m *manifest) ([]string, error) {
	if m.empty() {
		return nil, nil
	}
	all := slices.Sorted(maps.Keys(m.Files))
	for _, dir := range stateDirs {
		if m.made(dir) {
			all = append(all, dir)
		}
	}
	journal, err := h.journalDirs()
	return append(all, journal...), err
}
