package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/installed"
	"banger/internal/paths"
)

// Host is what is looked at.
type Host struct {
	// Root is in front of every path; empty for the real one.
	Root string
	// RootUID owns what is root's.
	RootUID int
	Arch    string
	Release string // of the kernel, as uname -r says
	Record  installed.Record
	// Units are the unit files of the installation, and its settings for udev, journald
	// and the like, by path.
	Units map[string]string
	Now   func() time.Time
	// Run asks a program of the host; nil: there is none.
	Run command
	// Guest finds a VM that runs: its name with the zone, and its address; nil:
	// nobody knows.
	Guest func(context.Context) (name string, addr netip.Addr, found bool)
}

// ThisHost is the one we are on.
func ThisHost(r installed.Record, units map[string]string) Host {
	h := Host{Arch: runtime.GOARCH, Record: r, Units: units, Now: time.Now, Run: runCommand}
	var u unix.Utsname
	if unix.Uname(&u) == nil { // cannot fail with a valid pointer
		h.Release = unix.ByteSliceToString(u.Release[:])
	}
	return h
}

func (h Host) at(path string) string { return filepath.Join(h.Root, path) }

// read returns a small file of the kernel's or an administrator's, without the
// space around it.
func (h Host) read(path string) (string, error) {
	raw, err := os.ReadFile(h.at(path))
	return strings.TrimSpace(string(raw)), err
}

// hostChecks are asked of any host, also of one without banger.
var hostChecks = []struct {
	id, why string
	look    func(Host) Finding
}{
	{"architecture", "programs and guest kernels are for x86-64", Host.architecture},
	{"kernel", "Firecracker and the jails need what older kernels lack", Host.kernel},
	{"cpu", "a guest may read the host's or another guest's memory through the processor", Host.vulnerabilities},
	{"smt", "two guests on the threads of one core may learn of each other's data", Host.smt},
	{"ksm", "a guest can tell which memory others have, by the time a write takes", Host.ksm},
	{"swap", "what a guest has in memory may end on the host's disk", Host.swap},
	{"cgroup-v2", "limits of VMs are kept by it", Host.cgroups},
	{"state", "disks of VMs lie there, in sparse files", Host.stateDir},
	{"inodes", "each VM, image and kernel is some files", Host.inodes},
}

// Questions are what can be asked of a host without any rights.
func (h Host) Questions() []Question {
	var all []Question
	for _, c := range hostChecks {
		all = append(all, One(c.id, c.why, func(context.Context) Finding { return c.look(h) }))
	}
	return append(all, One("resolver", "names of VMs are resolved on the host by it", h.resolver))
}

func (h Host) architecture() Finding {
	if h.Arch != "amd64" {
		return Fail("use an x86-64 host, or `banger machine`", "the architecture is %s", h.Arch)
	}
	return Pass("x86-64")
}

// oldest is the first kernel that Firecracker is tested on; locking, the first
// whose bridges hold a port to its MAC by themselves (IFLA_BRPORT_LOCKED), where
// older ones ignore the wish.
var oldest, locking = [2]int{5, 10}, [2]int{5, 18}

func (h Host) kernel() Finding {
	var v [2]int
	if n, err := fmt.Sscanf(h.Release, "%d.%d", &v[0], &v[1]); err != nil || n != 2 {
		return Warn("", "the kernel calls itself %q", h.Release)
	}
	if slices.Compare(v[:], oldest[:]) < 0 {
		return Fail("boot a newer kernel", "the kernel is %s, older than %d.%d", h.Release, oldest[0], oldest[1])
	}
	if slices.Compare(v[:], locking[:]) < 0 {
		newer := fmt.Sprintf("%d.%d", locking[0], locking[1])
		return Warn("boot "+newer+" or newer", "%s: before %s only the firewall's rules, and not the bridge too, hold guests to their MAC", h.Release, newer)
	}
	return Pass("%s", h.Release)
}

const vulnerabilities = "/sys/devices/system/cpu/vulnerabilities"

// weaknesses returns the names of the processor's weaknesses whose state holds
// one of the words.
func (h Host) weaknesses(words ...string) ([]string, error) {
	entries, err := os.ReadDir(h.at(vulnerabilities))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		text, err := h.read(vulnerabilities + "/" + e.Name())
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) }) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (h Host) vulnerabilities() Finding {
	// "Unknown: No mitigations" is a processor that nobody looks after any more.
	open, err := h.weaknesses("Vulnerable", "Unknown")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Warn("", "the kernel does not tell of the processor's weaknesses")
	case err != nil:
		return Warn("", "cannot tell: %v", err)
	case len(open) > 0:
		return Warn("update microcode and kernel, and boot without mitigations=off; see "+vulnerabilities, "nothing is done, or known to be done, against %s", strings.Join(open, ", "))
	}
	return Pass("the kernel has an answer to every weakness it knows")
}

func (h Host) smt() Finding {
	active, err := h.read("/sys/devices/system/cpu/smt/active")
	if errors.Is(err, fs.ErrNotExist) || err == nil && active == "0" {
		return Pass("off")
	}
	if err != nil {
		return Warn("", "cannot tell: %v", err)
	}
	names, err := h.weaknesses("SMT vulnerable")
	switch {
	case err != nil:
		return Warn("boot with mitigations=auto,nosmt if guests do not trust each other", "on, and what it opens cannot be told: %v", err)
	case len(names) == 0:
		return Pass("on; the kernel knows of no weakness that it opens on this processor")
	}
	return Warn("boot with mitigations=auto,nosmt if guests do not trust each other", "on, and opens %s", strings.Join(names, ", "))
}

func (h Host) ksm() Finding {
	run, err := h.read("/sys/kernel/mm/ksm/run")
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && run != "1":
		return Pass("off")
	case err != nil:
		return Warn("", "cannot tell: %v", err)
	}
	return Warn("echo 2 | sudo tee /sys/kernel/mm/ksm/run, and disable ksmtuned", "the kernel merges equal pages")
}

func (h Host) swap() Finding {
	text, err := h.read("/proc/swaps")
	if err != nil {
		return Warn("", "cannot tell: %v", err)
	}
	var plain []string
	lines := strings.Split(text, "\n")
	for _, line := range lines[1:] {
		if f := strings.Fields(line); len(f) > 0 && !h.keepsSecrets(f[0]) {
			plain = append(plain, f[0])
		}
	}
	switch {
	case len(plain) > 0:
		return Warn("encrypt it with dm-crypt, use zram, or switch it off", "%s is swapped to as it is", strings.Join(plain, ", "))
	case len(lines) > 1:
		return Pass("encrypted, or in memory")
	}
	return Pass("none")
}

// keepsSecrets tells whether what is swapped there is gone with the power.
func (h Host) keepsSecrets(swap string) bool {
	name := filepath.Base(swap)
	if strings.HasPrefix(name, "zram") {
		disk, err := h.read("/sys/block/" + name + "/backing_dev") // where it writes what is idle
		return err != nil || disk == "none" || h.encrypted(filepath.Base(disk))
	}
	var st unix.Stat_t
	if !strings.HasPrefix(swap, "/dev/") && unix.Stat(h.at(swap), &st) == nil { // a file, on some device
		link, err := os.Readlink(h.at(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))))
		return err == nil && h.encrypted(filepath.Base(link))
	}
	return h.encrypted(name)
}

// encrypted tells whether a block device is dm-crypt's, or made of such ones only,
// as volumes of LVM are.
func (h Host) encrypted(name string) bool {
	uuid, err := h.read("/sys/block/" + name + "/dm/uuid")
	// cryptsetup gives such names also to what only checks.
	checked := strings.HasPrefix(uuid, "CRYPT-VERITY-") || strings.HasPrefix(uuid, "CRYPT-INTEGRITY-")
	if err == nil && strings.HasPrefix(uuid, "CRYPT-") && !checked {
		return true
	}
	below, err := os.ReadDir(h.at("/sys/block/" + name + "/slaves"))
	return err == nil && len(below) > 0 && !slices.ContainsFunc(below, func(e fs.DirEntry) bool { return !h.encrypted(e.Name()) })
}

func (h Host) cgroups() Finding {
	text, err := h.read("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return Fail("boot with systemd.unified_cgroup_hierarchy=1", "/sys/fs/cgroup is not cgroup v2")
	}
	var missing []string
	for _, c := range []string{"memory", "pids", "cpu", "io"} {
		if !slices.Contains(strings.Fields(text), c) {
			missing = append(missing, c)
		}
	}
	switch {
	case slices.Contains(missing, "memory"), slices.Contains(missing, "pids"):
		return Fail("boot without cgroup_disable=, or with cgroup_enable=memory", "the controllers %s are missing", strings.Join(missing, ", "))
	case len(missing) > 0:
		return Warn("use a kernel with these controllers", "the controllers %s are missing", strings.Join(missing, ", "))
	}
	return Pass("with memory, pids, cpu and io")
}

// filesystems by the kernel's magic number. Those that are tried have no remark.
var filesystems = map[int64]struct{ name, remark string }{
	unix.EXT4_SUPER_MAGIC:      {"ext4", ""},
	unix.XFS_SUPER_MAGIC:       {"xfs", ""},
	unix.BTRFS_SUPER_MAGIC:     {"btrfs", ""},
	unix.TMPFS_MAGIC:           {"tmpfs", "it is lost when the host ends, and takes memory"},
	unix.NFS_SUPER_MAGIC:       {"nfs", "a network that fails makes disks of VMs fail"},
	unix.OVERLAYFS_SUPER_MAGIC: {"overlayfs", "a disk that is written to is copied whole first"},
	unix.FUSE_SUPER_MAGIC:      {"fuse", "nobody has tried it"},
}

func (h Host) statfs(path string) (st unix.Statfs_t, err error) {
	for {
		if err = unix.Statfs(h.at(path), &st); !errors.Is(err, unix.EINTR) {
			return st, err
		}
	}
}

func (h Host) stateDir() Finding {
	st, err := h.statfs(paths.StateDir)
	if err != nil {
		return Fail("sudo banger system install", "cannot look at %s: %v", paths.StateDir, err)
	}
	return judgeFilesystem(st.Type, st.Flags)
}

func judgeFilesystem(kind, flags int64) Finding {
	f, known := filesystems[kind]
	switch {
	case flags&unix.ST_RDONLY != 0:
		return Fail("see dmesg, and mount it for writing", "the filesystem of %s can only be read", paths.StateDir)
	case !known:
		return Warn("ext4, xfs and btrfs are known to work", "the filesystem of %s is of a kind that nobody has tried (%#x)", paths.StateDir, kind)
	case f.remark != "":
		return Warn("ext4, xfs and btrfs are known to work", "%s is on %s: %s", paths.StateDir, f.name, f.remark)
	}
	return Pass("%s is on %s", paths.StateDir, f.name)
}

// fewInodes is below which doctor warns.
const fewInodes = 10000

func (h Host) inodes() Finding {
	st, err := h.statfs(paths.StateDir)
	if err != nil {
		return Fail("sudo banger system install", "cannot look at %s: %v", paths.StateDir, err)
	}
	return judgeInodes(st.Files, st.Ffree)
}

func judgeInodes(all, free uint64) Finding {
	switch {
	case all == 0: // btrfs makes them as they are needed
		return Pass("as many as there is space")
	case free == 0:
		return Fail("remove files that are no longer needed", "none is left in %s", paths.StateDir)
	case free < fewInodes:
		return Warn("remove files that are no longer needed", "%d are left in %s", free, paths.StateDir)
	}
	return Pass("%d are left in %s", free, paths.StateDir)
}
