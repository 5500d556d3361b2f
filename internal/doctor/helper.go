package doctor

import (
	"fmt"
	"slices"
	"strings"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/paths"
)

// factChecks are about what only root can see, and banger-helper told.
var factChecks = []struct {
	id, why string
	judge   func(helper.HostFacts) Finding
}{
	{"kvm", "no VM runs without it", func(f helper.HostFacts) Finding {
		return fact(f.KVM, "a test guest ran", "load kvm_intel or kvm_amd, enable virtualization in the firmware, or use `banger machine`")
	}},
	{"device-mapper", "disks of VMs are made with it", func(f helper.HostFacts) Finding {
		return fact(f.DeviceMapper, "dm-snapshot is there", "sudo modprobe dm_snapshot")
	}},
	{"loop", "disks of VMs are made with it", func(f helper.HostFacts) Finding { return fact(f.Loop, "usable", "sudo modprobe loop") }},
	{"tun", "VMs get their network by it", func(f helper.HostFacts) Finding { return fact(f.Tun, "usable", "sudo modprobe tun") }},
	{"jail", "each VM lives in a directory there, with device nodes, a program, and links to blobs", func(f helper.HostFacts) Finding {
		return fact(f.Jail, "usable", "keep "+paths.HelperDir+" on one filesystem, without nodev, noexec and ro")
	}},
	{"jail-tree", "who can write there can change what VMs boot, or whose they are", func(f helper.HostFacts) Finding {
		return fact(oneLine(f.Tree), "owners and modes are as made", "sudo systemctl restart banger-helper; a blob that was changed: remove it, bangerd sends it again")
	}},
	{"foreign-files", "nothing but the helper writes there, so somebody with rights did", func(f helper.HostFacts) Finding {
		if len(f.Foreign) > 0 {
			return Warn("look at them, and remove them", "%s", list(f.Foreign))
		}
		return Pass("none in %s", paths.HelperDir)
	}},
	{"nft", "what guests may send is kept by it", func(f helper.HostFacts) Finding { return fact(f.NFT, "usable", "install nftables") }},
	{"forwarding", "guests with NAT reach nothing without it", func(f helper.HostFacts) Finding {
		if f.Forwarding != "" {
			return Warn("sudo sysctl net.ipv4.ip_forward=1, or "+reinstall, "%s", f.Forwarding)
		}
		return Pass("the host forwards IPv4")
	}},
	{"firewall", "another firewall decides as well on what guests send", func(f helper.HostFacts) Finding {
		if len(f.Firewall) > 0 {
			return Warn("", "%s", strings.Join(f.Firewall, "; "))
		}
		return Pass("no other takes anything from guests")
	}},
}

// Facts judges what the helper told.
func Facts(f helper.HostFacts) []api.Check {
	var all []api.Check
	for _, c := range factChecks {
		all = append(all, c.judge(f).check(c.id, c.why))
	}
	return all
}

// Confinement judges the processes of the VMs that ran before and after the
// helper looked; err says that this is not known.
func Confinement(f helper.HostFacts, running []string, err error) api.Check {
	var weak []string
	unseen := slices.Clone(running)
	for _, v := range f.VMMs {
		if !slices.Contains(running, v.ID) { // its Firecracker may not have given up its rights yet
			continue
		}
		unseen = slices.DeleteFunc(unseen, func(id string) bool { return id == v.ID })
		if v.Weak != "" {
			weak = append(weak, fmt.Sprintf("VM %s: %s", v.ID, v.Weak))
		}
	}
	found := Pass("%d running VMs looked at: none has rights, all have seccomp", len(running))
	switch {
	case err != nil:
		found = Warn("see check store", "cannot tell which VMs run: %v", err)
	case len(weak) > 0:
		found = Fail("stop these VMs, and see checks units, drop-ins and programs", "%s", list(weak))
	case len(unseen) > 0:
		found = Warn("look again; if it stays so, see `banger vm list` and journalctl -u banger-helper", "no process was found of VM %s, which should run", list(unseen))
	}
	return found.check("confinement", "a VMM that its guest took over can do what its process may")
}

// fact turns one of the helper's words, empty when all is well, into a finding.
func fact(problem, good, fix string) Finding {
	if problem != "" {
		return Fail(fix, "%s", problem)
	}
	return Pass("%s", good)
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

// longest is how many of a list a person is shown.
const longest = 8

func list(all []string) string {
	slices.Sort(all)
	if len(all) > longest {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:longest], ", "), len(all)-longest)
	}
	return strings.Join(all, ", ")
}
