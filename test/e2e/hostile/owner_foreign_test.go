//go:build e2e && hostile

package hostile

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/paths"
	"banger/test/host"
)

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// plantForeign makes things of others, named almost like ours.
func plantForeign(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { _ = os.RemoveAll(foreignDir) })
	if err := os.MkdirAll(foreignDir, 0o755); err != nil {
		t.Fatal(err)
	}
	writeSized(t, foreignDir+"/leaf", foreignSize, 0o644)
	writeSized(t, foreignDir+"/linked", foreignSize, 0o644)
	disk := foreignDir + "/disk.img"
	writeSized(t, disk, 8<<20, 0o600)
	loop := strings.TrimSpace(host.Root(t, "losetup", "--find", "--show", disk))
	undo(t, "losetup", "-d", loop)
	for _, name := range []string{"fc-rootfs-zz", "fc-rootfs-" + ownerForeign} {
		host.Root(t, "dmsetup", "create", name, "--uuid", "FOREIGN-"+name, "--table", "0 8192 linear "+loop+" 0")
		undo(t, "dmsetup", "remove", "--retry", name)
	}
	for _, link := range []string{"tapzz", "tap" + ownerDummy} {
		host.Root(t, "ip", "link", "add", link, "type", "dummy")
		undo(t, "ip", "link", "delete", link)
	}
	host.Root(t, "nft", "add", "table", "inet", "bangerx")
	undo(t, "nft", "delete", "table", "inet", "bangerx")
	host.Root(t, "nft", "add", "set", "inet", "bangerx", "guests", "{ type ipv4_addr; elements = { 172.16.0.2 }; }")
	host.Root(t, "systemd-run", "--quiet", "--collect", "--unit=banger-vmx", "sleep", "infinity")
	undo(t, "systemctl", "stop", "banger-vmx")
	host.Root(t, "mount", "-t", "tmpfs", "-o", "size=1m", "banger-foreign", foreignMount(t))
	undo(t, "umount", foreignDir+"/mount")
}

func foreignMount(t *testing.T) string {
	t.Helper()
	if err := os.Mkdir(foreignDir+"/mount", 0o755); err != nil {
		t.Fatal(err)
	}
	return foreignDir + "/mount"
}

func undo(t *testing.T, argv ...string) {
	t.Cleanup(func() { host.Root(t, argv...) })
}

// plantOwners makes what the owner has, and what only root could have put there.
// It returns the directory.
func plantOwners(t *testing.T) string {
	t.Helper()
	dir, owner := paths.StateDir+"/"+ownerDir, host.Owner(t)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir+"/race", 0o700), os.Mkdir(dir+"/dir", 0o700)); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int64{"good": goodSize, "over": goodSize, "work": goodSize, "twice": goodSize, "odd": 4097, "empty": 0} {
		writeSized(t, dir+"/"+name, size, 0o600)
	}
	// An overlay begins with nothing, or with a snapshot's mark.
	if err := errors.Join(os.Truncate(dir+"/over", 0), os.Truncate(dir+"/over", goodSize)); err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/sock", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	if err := errors.Join(
		os.Link(dir+"/twice", dir+"/again"),
		os.Link(foreignDir+"/linked", dir+"/hard"), // as without fs.protected_hardlinks
		unix.Mkfifo(dir+"/fifo", 0o600),
		unix.Mknod(dir+"/dev", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))), // /dev/zero
		unix.Mknod(dir+"/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(254, 0))),
	); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link": "/etc/shadow", "dirlink": "/etc", "foreign": foreignDir, "magic": "/proc/self/root", "other": "good", "self": "self", "up": ".."} {
		if err := os.Symlink(to, dir+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == "hard" {
			return err
		}
		return os.Lchown(path, owner.UID, owner.GID)
	}); err != nil {
		t.Fatal(err)
	}
	writeSized(t, dir+"/root", foreignSize, 0o644) // root's
	return dir
}

// Sizes tell whose file a device is made of.
const (
	goodSize    = 4 << 20
	foreignSize = 6 << 20
)

func writeSized(t *testing.T, path string, size int64, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(path)[:min(len(path), int(size))], mode), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
}

// foreignFiles has a line for each file that is none of banger's business.
func foreignFiles(t *testing.T) (all []string) {
	t.Helper()
	for _, root := range []string{"/etc", "/usr", "/root", "/boot", "/opt", "/home", "/srv", foreignDir, "/var/lib/dpkg", "/var/lib/systemd/linger"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			line := fmt.Sprintf("%s %o %d:%d %d bytes, %d names, inode %d, changed %d.%d", path, st.Mode, st.Uid, st.Gid, st.Size, st.Nlink, st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
			if path == foreignDir+"/linked" { // its other name is the owner's to rename
				line = fmt.Sprintf("%s %o %d:%d", path, st.Mode, st.Uid, st.Gid)
			}
			if st.Mode&unix.S_IFMT == unix.S_IFREG && (strings.HasPrefix(path, "/etc/") || strings.HasPrefix(path, foreignDir)) {
				raw, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %x", sha256.Sum256(raw))
			}
			all = append(all, line)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d files of others", len(all))
	return all
}

var handles = regexp.MustCompile(` # handle \d+`)

// kernelThings has a line for each device, link, rule, mount and service.
func kernelThings(t *testing.T) (all []string) {
	t.Helper()
	for _, argv := range [][]string{
		{"dmsetup", "table"},
		{"dmsetup", "info", "-c", "--noheadings", "-o", "name,uuid,major,minor"},
		{"losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE,RO,AUTOCLEAR,OFFSET,SIZELIMIT"},
		{"ip", "-oneline", "link", "show"},
		{"ip", "-brief", "address", "show"},
		{"nft", "--stateless", "list", "ruleset"},
		{"systemctl", "list-units", "--type=service", "--state=running", "--plain", "--no-legend", "banger*"},
	} {
		section := ""
		for _, line := range lines([]byte(host.Root(t, argv...))) {
			if argv[0] == "nft" && !strings.HasPrefix(line, "\t\t") { // which table and set a line is of
				section = line
			}
			all = append(all, strings.Join(argv, " ")+": "+section+" "+handles.ReplaceAllString(line, ""))
		}
	}
	for _, line := range lines([]byte(host.Read(t, "/proc/1/mountinfo"))) {
		all = append(all, "mount "+line)
	}
	for _, unit := range append(host.Glob(t, "/sys/fs/cgroup/system.slice/*.service"), host.Glob(t, "/sys/fs/cgroup/banger.slice/*.service")...) {
		all = append(all, processes(unit)...)
	}
	return all
}

// short are services that come and go by themselves.
var short = regexp.MustCompile(`udev|hostnamed|timedated|localed|logind|apt|man-db|logrotate|fstrim|tmpfiles|e2scrub|journald|banger-lab|ssh`)

// processes has a line for each process of a unit, with when it began.
func processes(unit string) (all []string) {
	if short.MatchString(unit) {
		return nil
	}
	raw, err := os.ReadFile(unit + "/cgroup.procs")
	if err != nil {
		return nil
	}
	for pid := range strings.FieldsSeq(string(raw)) {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(rest); len(fields) > 19 {
			all = append(all, fmt.Sprintf("process %s of %s, began %s", pid, filepath.Base(unit), fields[19]))
		}
	}
	return all
}
