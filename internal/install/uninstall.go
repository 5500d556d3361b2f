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
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"

	"banger/internal/paths"
)

// UninstallOptions of Uninstall.
type UninstallOptions struct {
	// Purge also removes VMs, images, kernels, settings and logs.
	Purge bool
	Out   io.Writer
}

// Uninstall ends all VMs and removes what Install made. Without Purge, VMs,
// images, kernels and settings stay for a later installation.
func Uninstall(ctx context.Context, o UninstallOptions) error {
	h, err := thisHost(o.Out)
	if err != nil {
		return err
	}
	return h.uninstall(ctx, o.Purge)
}

func (h *host) uninstall(ctx context.Context, purge bool) (err error) {
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	m, err := h.loadManifest()
	if err != nil {
		return err
	}
	if m.empty() {
		h.say("banger is not installed")
		return nil
	}
	if old, ok, err := h.oldRecord(); err != nil {
		return err
	} else if ok && len(m.Files[paths.InstallFile]) > 0 {
		if err := h.refuseOtherPlace(old); err != nil {
			return err
		}
	}
	if err := h.stopAll(ctx, m); err != nil {
		return err
	}
	err = h.removeAll(ctx, m, purge)
	if err == nil && len(m.Files)+len(m.Lines) == 0 && len(m.Dirs) == 1 && m.made(etcDir) {
		m.Dirs = nil // it can go once the manifest in it is gone
		defer func() { err = errors.Join(err, h.removeEtc()) }()
	}
	// What is left stays noted, whatever went wrong.
	return errors.Join(err, h.saveManifest(m), h.sayLeft(m))
}

// stopAll asks the guests first, then ends the daemon, which would start VMs
// again, then the VMs that are left, whose end still needs the helper, then
// the rest.
func (h *host) stopAll(ctx context.Context, m *manifest) error {
	if !h.booted() {
		return h.disable(ctx, m)
	}
	for _, units := range [][]string{
		h.present(m, guestsUnit),
		h.present(m, "bangerd.socket", dnsSocket, "bangerd.service"),
		{"banger-vm-*.service", "banger-fsck-*.service", "banger-kvm-host.service"},
		h.present(m, "banger-helper.socket", "banger-helper.service"),
		h.present(m, "banger.slice"),
		{"systemd-journald@banger.service", "systemd-journald@banger.socket", "systemd-journald-varlink@banger.socket"},
	} {
		if err := h.stop(ctx, units); err != nil {
			return err
		}
	}
	if helper := h.programPath("banger-helper"); m.has(helper) && len(m.Files[paths.InstallFile]) > 0 {
		if _, err := h.run(ctx, h.at(helper), "forget-network"); err != nil {
			h.say("warning: cannot remove the VMs' bridge and firewall rules: %v", err)
		}
	}
	return h.disable(ctx, m)
}

// booted tells whether systemd runs here. If not, as in a host's directory that
// was mounted to be mended, nothing of ours does.
func (h *host) booted() bool {
	_, err := os.Stat(h.at("/run/systemd/system"))
	return err == nil
}

// disable needs no running systemd: it removes links.
func (h *host) disable(ctx context.Context, m *manifest) error {
	if units := h.present(m, guestsUnit, "bangerd.socket", dnsSocket, "bangerd.service", "banger-helper.socket"); len(units) > 0 {
		if _, err := h.run(ctx, append([]string{"systemctl", "disable", "--quiet"}, units...)...); err != nil {
			return fmt.Errorf("cannot disable the units: %w", err)
		}
	}
	return nil
}

// stop ends the units that match and waits for their end.
func (h *host) stop(ctx context.Context, patterns []string) error {
	if len(patterns) == 0 {
		return nil
	}
	running, err := h.matching(ctx, patterns...)
	if err != nil || len(running) == 0 {
		return err
	}
	if _, err := h.run(ctx, append([]string{"systemctl", "stop"}, running...)...); err != nil {
		return fmt.Errorf("cannot stop %s: %w", strings.Join(running, ", "), err)
	}
	h.say("stopped %s", strings.Join(running, ", "))
	return nil
}

// matching returns the units that match and run.
func (h *host) matching(ctx context.Context, patterns ...string) (running []string, err error) {
	list := append([]string{"systemctl", "list-units", "--plain", "--no-legend", "--full",
		"--state=active,activating,deactivating,reloading"}, patterns...)
	out, err := h.run(ctx, list...)
	if err != nil {
		return nil, fmt.Errorf("cannot list units: %w", err)
	}
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 0 && IsOurUnit(fields[0]) {
			running = append(running, fields[0])
		}
	}
	return running, nil
}

// ofVM are the units that the helper has systemd make.
var ofVM = regexp.MustCompile(`^banger-(vm|fsck)-[0-9a-f]{12}\.service$`)

// IsOurUnit tells a unit of ours from somebody else's that has a name like those of VMs.
func IsOurUnit(name string) bool {
	return ofVM.MatchString(name) || !strings.HasPrefix(name, "banger-vm-") && !strings.HasPrefix(name, "banger-fsck-")
}

// present returns those units whose files are ours, or our package's, and there.
func (h *host) present(m *manifest, names ...string) []string {
	return slices.DeleteFunc(names, func(name string) bool {
		_, err := os.Lstat(h.at(h.unitPath(name)))
		return err != nil || !m.has(h.unitPath(name))
	})
}

func (h *host) removeAll(ctx context.Context, m *manifest, purge bool) error {
	if purge {
		for _, dir := range stateDirs {
			if err := h.removeTree(m, dir); err != nil {
				return err
			}
		}
		if err := h.removeJournal(); err != nil {
			return err
		}
	}
	for _, path := range removalOrder(m) {
		if path == paths.ConfigFile && !purge {
			continue
		}
		if err := h.removeFile(m, path, path == paths.ConfigFile); err != nil {
			return err
		}
	}
	if h.booted() {
		if _, err := h.run(ctx, "systemctl", "daemon-reload"); err != nil {
			return fmt.Errorf("cannot make systemd forget the units: %w", err)
		}
	}
	for _, dir := range []string{daemonRunDir, paths.HelperRunDir} {
		if err := h.removeUnmounted(dir); err != nil {
			return err
		}
	}
	if err := h.removeDirs(m); err != nil {
		return err
	}
	if m.Package != nil {
		h.say("left the programs and units of the package")
		m.Package = nil
	}
	// No file of a VM that stays belongs to one of these ids.
	return h.returnRange(ctx, m)
}

// removalOrder has the record at its end: as long as that is there, a removal that
// failed can be taken back, by an upgrade.
func removalOrder(m *manifest) []string {
	return slices.SortedFunc(maps.Keys(m.Files), func(a, b string) int {
		if record := paths.InstallFile; (a == record) != (b == record) {
			if a == record {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})
}

// removeFile removes a file that holds what an installation wrote. anyContent
// is for the one file that people are meant to change.
func (h *host) removeFile(m *manifest, path string, anyContent bool) error {
	ours, err := h.isOurs(m, path)
	if err != nil {
		return err
	}
	if !ours && !anyContent {
		h.say("left %s: it was changed since its installation", path)
		delete(m.Files, path)
		return nil
	}
	switch err := os.Remove(h.at(path)); {
	case err == nil:
		h.say("removed %s", path)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cannot remove %s: %w", path, err)
	}
	delete(m.Files, path)
	return nil
}

// removeDirs removes directories we made that are empty, except those below
// the state directories.
func (h *host) removeDirs(m *manifest) error {
	for _, dir := range slices.Backward(slices.Clone(m.Dirs)) {
		if dir == etcDir || slices.ContainsFunc(stateDirs, func(s string) bool { return within(s, dir) }) {
			continue
		}
		switch err := os.Remove(h.at(dir)); {
		case err == nil:
			h.say("removed %s", dir)
		case errors.Is(err, fs.ErrExist): // ENOTEMPTY: somebody else's files
			h.say("left %s: it holds files that banger did not write", dir)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("cannot remove %s: %w", dir, err)
		}
		m.Dirs = slices.DeleteFunc(m.Dirs, func(d string) bool { return d == dir })
	}
	return nil
}

func within(dir, path string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// removeTree removes a state directory, unless something is mounted in it:
// what lies there may be the host's own disks.
func (h *host) removeTree(m *manifest, dir string) error {
	if !m.made(dir) {
		return nil
	}
	if err := h.removeUnmounted(dir); err != nil {
		return err
	}
	h.say("removed %s", dir)
	m.Dirs = slices.DeleteFunc(m.Dirs, func(d string) bool { return within(dir, d) })
	return nil
}

// removeUnmounted removes a directory with all that is in it, unless something is
// mounted there, which is not ours.
func (h *host) removeUnmounted(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(h.at(dir)))
	if err != nil {
		return fmt.Errorf("cannot tell what is mounted below %s: %w", dir, err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("cannot remove %s: %s is mounted", dir, mounts[0].Mountpoint)
	}
	if err := os.RemoveAll(h.at(dir)); err != nil {
		return fmt.Errorf("cannot remove %s: %w", dir, err)
	}
	return nil
}

var machineID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-f]{32}$`) })

// journalDirs returns where the VMs' consoles are, which journald keeps in a
// namespace named banger.
func (h *host) journalDirs() (dirs []string, err error) {
	raw, err := os.ReadFile(h.at("/etc/machine-id"))
	id := strings.TrimSpace(string(raw))
	if errors.Is(err, fs.ErrNotExist) || (err == nil && !machineID().MatchString(id)) {
		return nil, nil // then journald has written nothing either
	}
	if err != nil {
		return nil, fmt.Errorf("cannot find the VMs' journal: %w", err)
	}
	for _, parent := range []string{"/var/log/journal", "/run/log/journal"} {
		dir := filepath.Join(parent, id+".banger")
		switch _, err := os.Lstat(h.at(dir)); {
		case err == nil:
			dirs = append(dirs, dir)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("cannot find the VMs' journal: %w", err)
		}
	}
	return dirs, nil
}

func (h *host) removeJournal() error {
	dirs, err := h.journalDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(h.at(dir)); err != nil {
			return fmt.Errorf("cannot remove the VMs' journal: %w", err)
		}
		h.say("removed %s", dir)
	}
	return nil
}

// removeEtc removes the directory of the manifest itself, now that it is gone.
func (h *host) removeEtc() error {
	switch err := os.Remove(h.at(etcDir)); {
	case err == nil:
		h.say("removed %s", etcDir)
	case errors.Is(err, fs.ErrExist):
		h.say("left %s: it holds files that banger did not write", etcDir)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cannot remove %s: %w", etcDir, err)
	}
	return nil
}

// sayLeft names everything that is still there and ours.
func (h *host) sayLeft(m *manifest) error {
	all, err := h.left(m)
	for _, path := range all {
		h.say("left %s", path)
	}
	h.say("left until the next boot: loaded kernel modules and net.ipv4.ip_forward, which others may need by now")
	return err
}
