//go:build e2e

package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"banger/api"
)

// Kernels that guests may run here: the distribution's, which needs no build, and
// banger's own, once somebody has built it (make kernel).
const (
	distributionKernel = "host"
	ownKernel          = "banger"
)

func kernels(t *testing.T) (names []string) {
	t.Helper()
	var all []api.Kernel
	if err := json.Unmarshal([]byte(must(t, "kernel", "list", "--json")), &all); err != nil {
		t.Fatal(err)
	}
	for _, k := range all {
		names = append(names, k.Name)
	}
	return names
}

// TestOnTheDistributionsKernel is one scenario of each kind on the kernel that the
// others do not run on where banger's own is built.
func TestOnTheDistributionsKernel(t *testing.T) {
	if !slices.Contains(kernels(t), ownKernel) {
		t.Skip("all scenarios run on it")
	}
	leavesNothing(t)
	r := banger(t, "vm", "run", "--rm", "--kernel", distributionKernel, "--", "sh", "-c", "cat /proc/modules | wc -l; echo err >&2; exit 7")
	if r.Code != 7 || r.Stderr != "err\n" || strings.TrimSpace(r.Stdout) == "0" {
		t.Errorf("%+v", r)
	}
	vm := running(t, "--kernel", distributionKernel)
	isUp(t, vm.Name)
	must(t, "vm", "exec", vm.Name, "--", "sh", "-c", "echo kept > /var/kept")
	must(t, "vm", "stop", vm.Name)
	must(t, "vm", "start", vm.Name)
	if got := must(t, "vm", "exec", vm.Name, "--", "cat", "/var/kept"); got != "kept\n" {
		t.Errorf("got %q", got)
	}
}

// TestOwnKernelHasWhatDevelopersRun tries in a guest what the kernel is built for.
func TestOwnKernelHasWhatDevelopersRun(t *testing.T) {
	if !slices.Contains(kernels(t), ownKernel) {
		t.Skip("not built here: make kernel")
	}
	leavesNothing(t)
	vm := running(t, "--kernel", ownKernel)
	for what, script := range map[string]string{
		"its own name":         `case $(uname -r) in *-banger) ;; *) uname -r; exit 1;; esac`,
		"no modules":           `[ ! -s /proc/modules ]`,
		"its configuration":    `zcat /proc/config.gz | grep -qx CONFIG_PVH=y`,
		"filesystems":          `for f in ext4 overlay squashfs erofs fuse tmpfs autofs iso9660 vfat; do grep -qw $f /proc/filesystems || { echo $f; exit 1; }; done`,
		"rootless overlay":     `unshare -Urm sh -ec 'mkdir /tmp/o; mount -t tmpfs none /tmp/o; cd /tmp/o; mkdir l u w m; mount -t overlay -o lowerdir=l,upperdir=u,workdir=w,userxattr none m; echo x >m/x; [ -e u/x ]'`,
		"links":                `for l in bridge veth dummy wireguard "vxlan id 1 dstport 4789" "geneve id 1 remote 192.0.2.1"; do ip link add t0 type $l && ip link del t0 || { echo "$l"; exit 1; }; done`,
		"links on links":       `ip link add p0 type dummy; for l in "vlan id 7" macvlan ipvlan; do ip link add link p0 name t0 type $l && ip link del t0 || { echo "$l"; exit 1; }; done; ip link del p0`,
		"tap":                  `ip tuntap add mode tap name t0 && ip link del t0`,
		"network namespaces":   `ip netns add n && ip netns exec n ip link set lo up && ip netns del n`,
		"iptables of old":      `[ -e /proc/net/ip_tables_names ] && [ -e /proc/net/ip6_tables_names ]`,
		"connection tracking":  `[ -e /proc/sys/net/netfilter/nf_conntrack_max ]`,
		"IPv6":                 `[ -e /proc/net/if_inet6 ]`,
		"cgroup controllers":   `for c in cpuset cpu io memory hugetlb pids; do grep -qw $c /sys/fs/cgroup/cgroup.controllers || { echo $c; exit 1; }; done`,
		"pressure":             `[ -e /proc/pressure/memory ]`,
		"BPF and its compiler": `mkdir -p /tmp/bpf && mount -t bpf none /tmp/bpf && umount /tmp/bpf && [ "$(cat /proc/sys/net/core/bpf_jit_enable)" = 1 ]`,
		"types for BPF":        `[ -s /sys/kernel/btf/vmlinux ]`,
		"tracing":              `mount | grep -q tracefs || mount -t tracefs none /sys/kernel/tracing; [ -e /sys/kernel/tracing/kprobe_events ] && [ -d /sys/kernel/tracing/events/syscalls ]`,
		"VM generation id":     `ls -d /sys/bus/acpi/drivers/vmgenid/*:*`,
		"random numbers":       `grep -q virtio /sys/class/misc/hw_random/rng_available || [ -e /sys/class/misc/hw_random ]`,
		"loop devices":         `truncate -s 1M /tmp/l && d=$(losetup --show -f /tmp/l) && losetup -d $d`,
		"device-mapper":        `[ -e /dev/mapper/control ]`,
		"32-bit programs":      `zcat /proc/config.gz | grep -qx CONFIG_IA32_EMULATION=y`,
		"sockets' owners":      `ss -xnp >/dev/null && ss -tnp >/dev/null`,
		"hardening":            `[ "$(cat /proc/sys/kernel/unprivileged_bpf_disabled)" = 2 ] && [ ! -e /dev/mem ]`,
	} {
		r := banger(t, "vm", "exec", vm.Name, "--", "sh", "-c", script)
		if r.Code != 0 {
			t.Errorf("%s: exit %d, %s%s", what, r.Code, r.Stdout, r.Stderr)
		}
	}
	t.Logf("clock of the host: %s", banger(t, "vm", "exec", vm.Name, "--", "sh", "-c", "cat /sys/class/ptp/*/clock_name 2>&1; dmesg | grep -iE 'error|fail|warn' | head").Stdout)
}
