package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/paths"
)

// tree makes a host of files; a name that ends in a slash is a directory.
func tree(t *testing.T, files map[string]string) Host {
	t.Helper()
	h := Host{Root: t.TempDir(), RootUID: os.Getuid(), Arch: "amd64", Release: "6.1.0-30-amd64"}
	for name, text := range files {
		put(t, h, name, text)
	}
	return h
}

func put(t *testing.T, h Host, name, text string) {
	t.Helper()
	path := h.at(name)
	dir := filepath.Dir(path)
	if strings.HasSuffix(name, "/") {
		dir = path
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if dir == path {
		return
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// check fails unless the finding is of that status and says that.
func check(t *testing.T, what string, got Finding, status api.CheckStatus, says string) {
	t.Helper()
	if got.Status != status || !strings.Contains(got.Found, says) {
		t.Errorf("%s: %s %q, want %s %q", what, got.Status, got.Found, status, says)
	}
}

const cpus = "/sys/devices/system/cpu/"

func TestHostChecks(t *testing.T) {
	type files map[string]string
	for name, c := range map[string]struct {
		files  files
		look   func(Host) Finding
		status api.CheckStatus
		says   string
	}{
		"no weakness": {files{vulnerabilities + "/meltdown": "Not affected\n", vulnerabilities + "/spectre_v2": "Mitigation: IBRS\n"},
			Host.vulnerabilities, "pass", "every weakness"},
		"two weaknesses": {files{vulnerabilities + "/mds": "Vulnerable: Clear CPU buffers attempted, no microcode; SMT vulnerable\n",
			vulnerabilities + "/itlb_multihit": "KVM: Vulnerable\n", vulnerabilities + "/meltdown": "Mitigation: PTI\n"},
			Host.vulnerabilities, "warn", "itlb_multihit, mds"},
		"mitigated but SMT": {files{vulnerabilities + "/mds": "Mitigation: Clear CPU buffers; SMT vulnerable\n"},
			Host.vulnerabilities, "pass", ""},
		"a kernel that tells nothing": {nil, Host.vulnerabilities, "warn", "does not tell"},
		"SMT off":                     {files{cpus + "smt/active": "0\n"}, Host.smt, "pass", "off"},
		"SMT unknown":                 {nil, Host.smt, "pass", "off"},
		"SMT harmless":                {files{cpus + "smt/active": "1\n", vulnerabilities + "/mds": "Not affected\n"}, Host.smt, "pass", "on;"},
		"SMT harmful": {files{cpus + "smt/active": "1\n", vulnerabilities + "/mds": "Mitigation: Clear CPU buffers; SMT vulnerable\n"},
			Host.smt, "warn", "opens mds"},
		"no KSM":       {nil, Host.ksm, "pass", "off"},
		"KSM off":      {files{"/sys/kernel/mm/ksm/run": "0\n"}, Host.ksm, "pass", "off"},
		"KSM unmerged": {files{"/sys/kernel/mm/ksm/run": "2\n"}, Host.ksm, "pass", "off"},
		"KSM on":       {files{"/sys/kernel/mm/ksm/run": "1\n"}, Host.ksm, "warn", "merges"},
		"no swap":      {files{"/proc/swaps": "Filename Type Size\n"}, Host.swap, "pass", "none"},
		"zram":         {files{"/proc/swaps": "Filename Type\n/dev/zram0 partition 1 0 100\n"}, Host.swap, "pass", "in memory"},
		"encrypted swap": {files{"/proc/swaps": "Filename\n/dev/dm-3 partition 1 0\n", "/sys/block/dm-3/dm/uuid": "CRYPT-PLAIN-swap\n"},
			Host.swap, "pass", "encrypted"},
		"LVM is not encryption": {files{"/proc/swaps": "Filename\n/dev/dm-3 partition 1 0\n", "/sys/block/dm-3/dm/uuid": "LVM-abc\n"},
			Host.swap, "warn", "/dev/dm-3"},
		"LVM on LUKS": {files{"/proc/swaps": "Filename\n/dev/dm-3 partition 1 0\n", "/sys/block/dm-3/dm/uuid": "LVM-abc\n",
			"/sys/block/dm-3/slaves/dm-0/x": "", "/sys/block/dm-0/dm/uuid": "CRYPT-LUKS2-abc\n"}, Host.swap, "pass", "encrypted"},
		"LVM on LUKS and not": {files{"/proc/swaps": "Filename\n/dev/dm-3 partition 1 0\n",
			"/sys/block/dm-3/slaves/dm-0/x": "", "/sys/block/dm-3/slaves/sda1/x": "", "/sys/block/dm-0/dm/uuid": "CRYPT-LUKS2-abc\n"}, Host.swap, "warn", "/dev/dm-3"},
		"a swap file":  {files{"/proc/swaps": "Filename\n/dev/zram0 p\n/swapfile file 1 0\n"}, Host.swap, "warn", "/swapfile is"},
		"no cgroup v2": {nil, Host.cgroups, "fail", "not cgroup v2"},
		"cgroup v2":    {files{"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n"}, Host.cgroups, "pass", ""},
		"no memory":    {files{"/sys/fs/cgroup/cgroup.controllers": "cpu io pids\n"}, Host.cgroups, "fail", "memory are missing"},
		"no io":        {files{"/sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n"}, Host.cgroups, "warn", "io are missing"},
		"no state":     {nil, Host.stateDir, "fail", "cannot look at"},
		"no inode":     {nil, Host.inodes, "fail", "cannot look at"},
		"inodes":       {files{paths.StateDir + "/": ""}, Host.inodes, "pass", ""},
		"a processor nobody looks after": {files{vulnerabilities + "/mmio_stale_data": "Unknown: No mitigations\n"},
			Host.vulnerabilities, "warn", "mmio_stale_data"},
		"SMT, and the kernel tells nothing": {files{cpus + "smt/active": "1\n"}, Host.smt, "warn", "cannot be told"},
		"zram that writes to a disk": {files{"/proc/swaps": "Filename\n/dev/zram0 partition 1 0\n", "/sys/block/zram0/backing_dev": "/dev/sda3\n"},
			Host.swap, "warn", "/dev/zram0"},
		"zram alone": {files{"/proc/swaps": "Filename\n/dev/zram0 partition 1 0\n", "/sys/block/zram0/backing_dev": "none\n"},
			Host.swap, "pass", "in memory"},
		"zram that writes to an encrypted disk": {files{"/proc/swaps": "Filename\n/dev/zram0 partition 1 0\n",
			"/sys/block/zram0/backing_dev": "/dev/dm-3\n", "/sys/block/dm-3/dm/uuid": "CRYPT-PLAIN-x\n"}, Host.swap, "pass", "in memory"},
		"integrity is not encryption": {files{"/proc/swaps": "Filename\n/dev/dm-3 partition 1 0\n", "/sys/block/dm-3/dm/uuid": "CRYPT-INTEGRITY-swap\n"},
			Host.swap, "warn", "/dev/dm-3"},
	} {
		check(t, name, c.look(tree(t, c.files)), c.status, c.says)
	}
}

func TestKernelAndArchitecture(t *testing.T) {
	for release, status := range map[string]api.CheckStatus{
		"6.1.0-30-amd64": "pass", "5.10.0": "warn", "5.17.9": "warn", "5.18.0": "pass", "5.9.99-generic": "fail", "4.19.0": "fail", "10.0": "pass", "": "warn", "mine": "warn",
	} {
		check(t, release, Host{Release: release}.kernel(), status, release)
	}
	if fix := (Host{Release: "5.10.0"}).kernel().Fix; fix != "boot 5.18 or newer" {
		t.Errorf("fix: %q", fix)
	}
	check(t, "amd64", Host{Arch: "amd64"}.architecture(), "pass", "x86-64")
	check(t, "arm64", Host{Arch: "arm64"}.architecture(), "fail", "arm64")
}

func TestFilesystems(t *testing.T) {
	check(t, "ext4", judgeFilesystem(unix.EXT4_SUPER_MAGIC, 0), "pass", "on ext4")
	check(t, "read only", judgeFilesystem(unix.EXT4_SUPER_MAGIC, unix.ST_RDONLY|unix.ST_NOATIME), "fail", "only be read")
	check(t, "tmpfs", judgeFilesystem(unix.TMPFS_MAGIC, 0), "warn", "lost when the host ends")
	check(t, "unknown", judgeFilesystem(0x1234, 0), "warn", "0x1234")
	check(t, "btrfs", judgeInodes(0, 0), "pass", "as many")
	check(t, "none", judgeInodes(100, 0), "fail", "none is left")
	check(t, "few", judgeInodes(1e6, fewInodes-1), "warn", "9999")
	check(t, "enough", judgeInodes(1e6, fewInodes), "pass", "10000")
}
