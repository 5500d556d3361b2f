// Package install puts banger on a host and takes it off again: programs,
// systemd units, the uid range of the VMs, the owner's directories and the
// default kernel.
//
// Every file and directory it makes is noted in /etc/banger/files.json before
// it is made. A file that is there but not noted, or that somebody changed
// since, is foreign: it is never overwritten and never removed. Installing
// again brings everything to this build's state, prints what that changed and
// prints nothing when all is as it should be; a run that was cut off is
// finished by the next one. VMs keep running through all of it, since they are
// units of their own.
package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/installed"
	"banger/internal/paths"
	"banger/internal/version"
)

// Options of Install.
type Options struct {
	// Owner is the user whose daemon and VMs these are.
	Owner string
	// From is the directory with the programs to install; empty means where
	// the running program lies.
	From string
	// Bridge and Network, as installed.Record has them; empty means those there are,
	// or the default.
	Bridge, Network string
	// Out receives one line for each change.
	Out io.Writer
	// ImportKernel gives the daemon the host's own kernel under the name
	// DefaultKernel; modulesDir is empty where the host has no modules. It is
	// called when the daemon answers and has no such kernel. Nil leaves it out.
	ImportKernel func(ctx context.Context, kernelFile, modulesDir string) error
}

// DefaultKernel is the name the host's own kernel is imported under.
const DefaultKernel = "host"

// host is the machine that is changed. Tests put a directory in place of its
// root and a recorder in place of its commands.
type host struct {
	root   string // prefix of every path; empty for the real host
	layout paths.Layout
	// rootUID and rootGID are whose the system's files must be.
	rootUID, rootGID int
	run              runner
	daemon           *http.Client                              // reaches bangerd
	addresses        func() (map[string][]netip.Prefix, error) // of the host, by device; nil: it has none
	out              io.Writer
	now              func() time.Time
}

func thisHost(out io.Writer) (*host, error) {
	if os.Geteuid() != 0 {
		return nil, api.Problemf(http.StatusForbidden, api.CodeForbidden, "cannot change the system's installation: root is needed").
			WithHint("repeat the command with sudo")
	}
	unix.Umask(0o022) // of a person who has another one: see makeDir
	return realHost(out), nil
}

func realHost(out io.Writer) *host {
	return &host{layout: paths.Here, run: runCommand, daemon: daemonClient(paths.DaemonSocket), addresses: hostAddresses, out: out, now: time.Now}
}

// at returns where a path of the host really is.
func (h *host) at(path string) string { return filepath.Join(h.root, path) }

func (h *host) say(format string, args ...any) {
	fmt.Fprintf(h.out, format+"\n", args...)
}

// Install puts this build of banger on the host, or brings an older one up to it.
func Install(ctx context.Context, o Options) error {
	h, err := thisHost(o.Out)
	if err != nil {
		return err
	}
	return h.install(ctx, o)
}

func (h *host) install(ctx context.Context, o Options) (err error) {
	own, err := h.findOwner(ctx, o.Owner)
	if err != nil {
		return err
	}
	if err := h.check(ctx); err != nil {
		return err
	}
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()

	m, err := h.loadManifest()
	if err != nil {
		return err
	}
	ids, err := h.chooseRange(ctx)
	if err != nil {
		return err
	}
	if o.Bridge, o.Network, err = h.chooseNetwork(ctx, o); err != nil {
		return err
	}
	w, err := h.want(own, ids.start, o)
	if err != nil {
		return err
	}
	if err := h.refuseForeign(m, w, own); err != nil {
		return err
	}
	if err := h.refuseOutdatedPackage(w.packaged); err != nil {
		return err
	}
	if err := h.leaveNetwork(ctx, o.Bridge, o.Network); err != nil {
		return err
	}
	changed, err := h.write(ctx, m, ids, w, own)
	if err != nil {
		return err
	}
	if err := h.activate(ctx, changed); err != nil {
		return err
	}
	m.settle(w.packaged)
	if err := h.saveManifest(m); err != nil {
		return err
	}
	return h.importKernel(ctx, o.ImportKernel)
}

// oldestSystemd knows every setting of the units. An older one passes over those of
// the sandbox that it does not know, with a warning in its log.
const oldestSystemd = 252

// check refuses a host on which banger cannot work whatever is installed.
func (h *host) check(ctx context.Context) error {
	prerequisite := func(format string, args ...any) *api.Problem {
		return api.Problemf(http.StatusPreconditionFailed, api.CodePrerequisite, "cannot install banger: "+format, args...)
	}
	if runtime.GOARCH != "amd64" {
		return prerequisite("the architecture %s is not supported", runtime.GOARCH).WithHint("use an x86-64 host")
	}
	if !h.booted() {
		return prerequisite("systemd does not run here").WithHint("banger needs a host booted by systemd; in a container use `banger machine`")
	}
	said, err := h.run(ctx, "systemctl", "--version")
	if err != nil {
		return fmt.Errorf("cannot tell the version of systemd: %w", err)
	}
	var version int
	if _, err := fmt.Sscanf(said, "systemd %d", &version); err != nil || version < oldestSystemd {
		first, _, _ := strings.Cut(said, "\n")
		return prerequisite("it needs systemd %d or newer, and this is %q", oldestSystemd, first).WithHint("use a newer release of the distribution")
	}
	if _, err := os.Stat(h.at("/sys/fs/cgroup/cgroup.controllers")); err != nil {
		return prerequisite("the host does not use cgroup v2").WithHint("boot with systemd.unified_cgroup_hierarchy=1")
	}
	return h.checkPlaces()
}

// lock keeps a second install or uninstall out. It locks a directory that
// always exists, so that nothing has to be left behind for it.
func (h *host) lock() (unlock func() error, err error) {
	d, err := os.Open(h.at(paths.AdminUnits))
	if err != nil {
		return nil, fmt.Errorf("cannot lock the installation: %w", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(api.Conflict("cannot lock the installation: another install or uninstall is running: %v", err), d.Close())
	}
	return d.Close, nil
}

// write makes everything of the installation that lies on a disk, and returns
// the paths of the files that are newer than the running services.
func (h *host) write(ctx context.Context, m *manifest, ids idChoice, w wanted, own owner) (map[string]bool, error) {
	if err := h.makeEtc(m); err != nil {
		return nil, err
	}
	todo, err := h.outdated(w.files)
	if err != nil {
		return nil, err
	}
	dirs := h.directories(own, w.files)
	if err := h.announceDirs(m, dirs); err != nil {
		return nil, err
	}
	m.Programs = h.layout.Libexec
	m.announce(todo, w.packaged, ids.lines())
	if err := h.saveManifest(m); err != nil {
		return nil, err
	}
	if err := h.reserveRange(ctx, ids); err != nil {
		return nil, err
	}
	for _, d := range dirs {
		if err := h.makeDir(d); err != nil {
			return nil, err
		}
	}
	changed := map[string]bool{}
	for _, f := range todo {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("cannot finish the installation: %w", err)
		}
		if err := h.writeFile(f); err != nil {
			return nil, err
		}
		h.say("wrote %s", f.path)
	}
	for _, path := range m.Pending { // of this run and of an earlier one that was cut off
		changed[path] = true
	}
	for _, f := range w.packaged {
		if m.Package[f.path] != f.identity() {
			changed[f.path] = true
		}
	}
	return changed, nil
}

// record returns what install.toml shall say. A record that is already there
// and says the same keeps its date.
func (h *host) record(own owner, uidBase int, progs []file, o Options) (installed.Record, error) {
	r := installed.Record{
		Owner: own.name, UID: own.uid, GID: own.gid,
		UIDBase: uidBase, UIDCount: rangeCount,
		Bridge: o.Bridge, Network: o.Network,
		Firecracker: h.programPath("firecracker"), Jailer: h.programPath("jailer"),
		Version: version.Version,
	}
	for _, f := range progs {
		switch f.path {
		case r.Firecracker:
			r.FirecrackerSHA256 = f.sum
		case r.Jailer:
			r.JailerSHA256 = f.sum
		}
	}
	old, ok, err := h.oldRecord()
	if err != nil {
		return r, err
	}
	if ok {
		if err := h.refuseOtherPlace(old); err != nil {
			return r, err
		}
		if old.Owner != own.name {
			return r, api.Conflict("cannot install banger for %s: it is installed for %s", own.name, old.Owner).
				WithHint("`banger system uninstall --purge` removes that installation and its VMs")
		}
		date := old.InstalledAt
		if old.InstalledAt = ""; old == r {
			r.InstalledAt = date
			return r, nil
		}
	}
	r.InstalledAt = h.now().UTC().Format(time.RFC3339)
	return r, nil
}

// oldRecord reads the record of an installation that is there. One that nobody
// can read is none: it is a file like others, ours or foreign.
func (h *host) oldRecord() (r installed.Record, ok bool, err error) {
	raw, err := os.ReadFile(h.at(paths.InstallFile))
	if errors.Is(err, fs.ErrNotExist) {
		return r, false, nil
	}
	if err != nil {
		return r, false, fmt.Errorf("cannot read the record of the installation: %w", err)
	}
	r, err = installed.Parse(string(raw))
	return r, err == nil, nil
}

// refuseOtherPlace stops a program that is not of the layout that is installed.
func (h *host) refuseOtherPlace(r installed.Record) error {
	dir := filepath.Dir(r.Firecracker)
	if dir == h.layout.Libexec {
		return nil
	}
	other := filepath.Join(paths.LayoutOf(r.Firecracker).Bin, "banger")
	return api.Conflict("cannot change this installation: its programs are in %s, those of this banger belong into %s", dir, h.layout.Libexec).
		WithHint("use %s, or remove that one first, `sudo %s system uninstall`: VMs, images and settings stay", other, other)
}
