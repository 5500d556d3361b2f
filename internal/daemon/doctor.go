package daemon

import (
	"context"
	"fmt"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/helper"
	"banger/internal/paths"
	"banger/internal/version"
)

// lowSpace is below which doctor warns; a VM needs less to start.
const lowSpace = 4 << 30

func (d *Daemon) getDoctor(ctx context.Context, _ *struct{}) ([]api.Check, error) {
	checks := []api.Check{}
	facts, err := d.helper.Check(ctx)
	if err != nil {
		checks = append(checks, fail("helper", err.Error(), "it does all that needs root", "systemctl status banger-helper.socket banger-helper.service"))
	} else {
		checks = append(checks, helperChecks(facts)...)
	}
	checks = append(checks, d.imageCheck(ctx), d.kernelCheck(ctx), spaceCheck())
	return append(checks, d.vms.Checks(ctx)...), nil
}

func helperChecks(f helper.HostFacts) []api.Check {
	drift := api.Check{ID: "versions", Status: "pass", Found: "daemon and helper are " + version.Version}
	if f.HelperVersion != version.Version {
		drift = warn("versions", fmt.Sprintf("daemon is %s, helper is %s", version.Version, f.HelperVersion),
			"they are made to go together", "sudo systemctl restart bangerd banger-helper")
	}
	checks := []api.Check{
		drift,
		fact("kvm", f.KVM, "usable", "no VM runs without it", "load kvm_intel or kvm_amd, enable virtualization in the firmware, or use `banger machine`"),
		fact("device-mapper", f.DeviceMapper, "dm-snapshot is there", "root disks are made with it", "sudo modprobe dm_snapshot"),
		fact("loop", f.Loop, "usable", "root disks are made with it", "sudo modprobe loop"),
		fact("tun", f.Tun, "usable", "VMs get their network by it", "sudo modprobe tun"),
		fact("cgroup-v2", f.CgroupV2, "mounted", "limits of VMs are kept by it", "boot with systemd.unified_cgroup_hierarchy=1"),
		fact("jail", f.Jail, "usable", "each VM lives in a directory there", "keep "+paths.HelperDir+" on one filesystem without nodev and noexec"),
		fact("nft", f.NFT, "usable", "what guests may do is kept by it", "install nftables"),
		firecrackerCheck(f),
	}
	if f.Forwarding != "" {
		checks = append(checks, warn("forwarding", f.Forwarding, "guests with NAT reach nothing without it", "sudo sysctl net.ipv4.ip_forward=1, or sudo banger system install"))
	}
	for _, said := range f.Firewall {
		checks = append(checks, warn("firewall", said, "another firewall decides as well", ""))
	}
	return checks
}

// fact turns one of the helper's facts, empty when all is well, into a check.
func fact(id, problem, good, why, fix string) api.Check {
	if problem == "" {
		return api.Check{ID: id, Status: "pass", Found: good}
	}
	return fail(id, problem, why, fix)
}

func firecrackerCheck(f helper.HostFacts) api.Check {
	switch {
	case f.Programs != "":
		return fail("firecracker", f.Programs, "VMs run only in what was installed", "sudo banger system install")
	case f.Firecracker == "" || f.Jailer == "":
		return fail("firecracker", "firecracker or jailer cannot be used", "VMs run in it", "sudo banger system install")
	case f.Firecracker != f.Jailer:
		return fail("firecracker", fmt.Sprintf("firecracker is %s, jailer is %s", f.Firecracker, f.Jailer),
			"they are made to go together", "install both from one release")
	}
	return api.Check{ID: "firecracker", Status: "pass", Found: f.Firecracker}
}

func (d *Daemon) imageCheck(ctx context.Context) api.Check {
	if _, err := d.store.Image(ctx, d.config.DefaultImage); err != nil {
		return warn("default-image", fmt.Sprintf("there is no image %q", d.config.DefaultImage),
			"`vm run` without --image uses it", "banger image import "+d.config.DefaultImage+" FILE.tar")
	}
	return api.Check{ID: "default-image", Status: "pass", Found: d.config.DefaultImage}
}

func (d *Daemon) kernelCheck(ctx context.Context) api.Check {
	k, err := d.store.Kernel(ctx, d.config.DefaultKernel)
	if err != nil {
		return warn("default-kernel", fmt.Sprintf("there is no kernel %q", d.config.DefaultKernel),
			"`vm run` without --kernel uses it", "sudo banger system install, or banger kernel import "+d.config.DefaultKernel+" --from FILE")
	}
	return api.Check{ID: "default-kernel", Status: "pass", Found: k.Name + ", " + k.Release}
}

func spaceCheck() api.Check {
	free, err := disk.Free(paths.StateDir)
	if err != nil {
		return fail("space", err.Error(), "disks of VMs lie there", "")
	}
	found := fmt.Sprintf("%d MiB free in %s", free>>20, paths.StateDir)
	if free < lowSpace {
		return warn("space", found, "running VMs are paused when it is used up", "banger vm delete, banger image delete")
	}
	return api.Check{ID: "space", Status: "pass", Found: found}
}

func fail(id, found, why, fix string) api.Check {
	return api.Check{ID: id, Status: "fail", Found: found, Why: why, Fix: fix}
}

func warn(id, found, why, fix string) api.Check {
	return api.Check{ID: id, Status: "warn", Found: found, Why: why, Fix: fix}
}
