//go:build e2e

package hostile

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/test/host"
)

// exposure is what `systemd-analyze security` makes of each unit, of systemd
// 252; 0 is best. It may only fall.
var exposure = map[string]float64{"bangerd.service": 1.6, "banger-helper.service": 2.8, "banger-vm": 3.6,
	"banger-fsck": 1.8, "banger-kvm": 0.5, "banger-guests.service": 0.4}

var overall = regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)

func TestUnitsAreAsTightAsTheyWere(t *testing.T) {
	vm := normal(t)
	for name, most := range exposure {
		unit := name
		switch name {
		case "banger-vm":
			unit = vm.Unit
		case "banger-fsck", "banger-kvm": // a check is over too soon to look at; TestCheckThatNeverEnds looks at a real one
			unit = bystander(t, name)
		}
		got := exposureOf(t, unit)
		t.Logf("%s: %.1f", name, got)
		if got > most {
			t.Errorf("%s is at %.1f, was at %.1f:\n%s", name, got, most, host.Root(t, "systemd-analyze", "security", "--no-pager", unit))
		}
	}
	measure(t, vm.Unit)
}

func exposureOf(t *testing.T, unit string) float64 {
	t.Helper()
	out := host.Root(t, "systemd-analyze", "security", "--no-pager", unit)
	found := overall.FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("systemd-analyze says %s", out)
	}
	level, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return level
}

// measure prints how a running VM is confined.
func measure(t *testing.T, unit string) {
	pid := host.MainPID(t, unit)
	s := host.Status(t, pid)
	for _, key := range []string{"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"} {
		t.Logf("%-16s %s", key, s[key])
	}
	proc := fmt.Sprintf("/proc/%d/", pid)
	var own, shared []string
	for _, ns := range host.Glob(t, proc+"ns/*") {
		kind := filepath.Base(ns)
		theirs, err := os.Readlink(ns)
		if err != nil {
			continue // of children: it has none
		}
		if ours, _ := os.Readlink("/proc/1/ns/" + kind); ours == theirs {
			shared = append(shared, kind)
		} else {
			own = append(own, kind)
		}
	}
	t.Logf("own namespaces   %s; the host's: %s", strings.Join(own, " "), strings.Join(shared, " "))
	for _, need := range []string{"ipc", "mnt", "net", "pid", "uts"} {
		if !slices.Contains(own, need) {
			t.Errorf("it shares the host's %s namespace", need)
		}
	}
	seen, writable := visible(t, proc+"root", s["Uid"])
	t.Logf("its root holds   %s", strings.Join(seen, " "))
	for _, path := range seen {
		if strings.HasPrefix(path, "/usr") || strings.HasPrefix(path, "/lib") || strings.HasPrefix(path, "/etc") {
			t.Errorf("its root holds %s", path)
		}
	}
	t.Logf("it can write     %s", strings.Join(writable, " "))
	for _, path := range writable {
		if !slices.Contains([]string{"/rootfs", "/work", "/metrics", "/run/api.sock", "/run/vsock.sock",
			"/dev/kvm", "/dev/net/tun", "/dev/userfaultfd", "/dev/urandom"}, path) {
			t.Errorf("it can write %s", path)
		}
	}
	for kind, n := range descriptors(t, proc+"fd/*") {
		t.Logf("descriptors      %-32s %d", kind, n)
		if strings.HasPrefix(kind, "/") && !strings.HasPrefix(kind, "/dev/") && !slices.Contains([]string{"/rootfs", "/work", "/metrics", "/vmlinux", "/initrd"}, kind) {
			t.Errorf("it has %s open", kind)
		}
	}
	cgroup := "/sys/fs/cgroup/banger.slice/" + unit + "/"
	for _, limit := range []string{"memory.max", "memory.swap.max", "pids.max", "cpu.weight", "cpu.max", "io.weight"} {
		raw, err := os.ReadFile(cgroup + limit)
		value := strings.TrimSpace(string(raw))
		t.Logf("%-16s %s %v", limit, value, err)
		// Shares are the owner's to set; these three are what keeps a VM from the host's own.
		if bounded := strings.HasSuffix(limit, ".max") && limit != "cpu.max"; bounded && (err != nil || value == "max") {
			t.Errorf("%s is %q, %v", limit, value, err)
		}
	}
}

// visible walks what a process sees as its root, and tells what of it its uid
// may write.
func visible(t *testing.T, root, uid string) (seen, writable []string) {
	t.Helper()
	owner, _, _ := strings.Cut(uid, "\t")
	err := filepath.WalkDir(root+"/", func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(path, root+"/")
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		seen = append(seen, name)
		if (strconv.Itoa(int(st.Uid)) == owner && st.Mode&0o200 != 0) || st.Mode&0o002 != 0 {
			writable = append(writable, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return seen, writable
}

// descriptors counts what a process has open: files by name, the rest by kind.
func descriptors(t *testing.T, pattern string) map[string]int {
	t.Helper()
	all := map[string]int{}
	for _, fd := range host.Glob(t, pattern) {
		to, err := os.Readlink(fd)
		if err != nil {
			continue // closed meanwhile
		}
		kind, _, _ := strings.Cut(to, ":[")
		all[kind]++
	}
	return all
}
