package vm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/store"
)

// What a VM may have, whatever the host is. The first is Firecracker's limit;
// a filesystem in less than minDisk would not be worth the name.
const (
	maxVCPU = 32
	minDisk = 64 << 20
	maxDisk = 16 << 40
	// diskUnit keeps sizes whole for every layer below.
	diskUnit = 1 << 20
	maxIdle  = math.MaxInt32 // seconds
	// The range of systemd, which takes 0 for something else; here it is its default.
	maxWeight = 10000
	// Thousandths of a CPU: the kernel's least share of its period, and all vCPUs.
	minCPULimit, maxCPULimit = 10, maxVCPU * 1000
	// Bytes a second: with less, a guest's last writes would hold up its end.
	minIOLimit, maxIOLimit = 1 << 20, 1 << 40
)

// wanted is the record of a VM as it is asked for, without image and kernel.
func (m *Manager) wanted(spec api.VMSpec) *store.VM {
	v := &store.VM{State: api.StateCreated, Slot: -1, CreatedAt: now(), Name: spec.Name,
		VCPU: m.DefaultVCPU, MemoryMiB: m.DefaultMemory, DiskBytes: m.DefaultDisk, NAT: m.DefaultNAT,
		IdleStop: int(m.DefaultIdleStop.Seconds()), Network: spec.Network,
		Autostart: spec.Autostart, Restart: api.Restart(or(string(spec.Restart), string(api.RestartNo))), Ephemeral: spec.Ephemeral}
	set(&v.VCPU, spec.VCPU)
	set(&v.MemoryMiB, spec.MemoryMiB)
	set(&v.DiskBytes, spec.DiskBytes)
	set(&v.NAT, spec.NAT)
	set(&v.IdleStop, spec.IdleStopSeconds)
	set(&v.CPUWeight, spec.CPUWeight)
	set(&v.IOWeight, spec.IOWeight)
	set(&v.CPULimit, spec.CPULimitMillis)
	set(&v.IOLimit, spec.IOLimitBytes)
	return v
}

// set gives to the value that was asked for, if one was, and tells whether
// that changes it.
func set[T comparable](to *T, value *T) (changed bool) {
	if value == nil || *to == *value {
		return false
	}
	*to = *value
	return true
}

// resolve finds image and kernel of a new VM and checks all that was asked for.
func (m *Manager) resolve(ctx context.Context, v *store.VM, spec api.VMSpec) error {
	const cannot = "cannot create VM"
	if spec.Name != "" {
		if err := checkName(cannot, spec.Name); err != nil {
			return err
		}
	}
	if err := m.useImage(ctx, cannot, v, or(spec.Image, m.DefaultImage)); err != nil {
		return err
	}
	if err := m.useKernel(ctx, cannot, v, or(spec.Kernel, m.DefaultKernel)); err != nil {
		return err
	}
	return m.check(ctx, cannot, v)
}

func checkName(cannot, name string) error {
	if !guest.ValidName(name) {
		return api.BadRequest("%s: %q is no name", cannot, name).
			WithHint("a name has 1 to 63 characters of a-z, 0-9 and '-', and no '-' at either end")
	}
	if guest.ValidID(name) { // it could be mistaken for another VM's id
		return api.BadRequest("%s: the name %q looks like an id", cannot, name).WithHint("choose another with --name")
	}
	return nil
}

func (m *Manager) useImage(ctx context.Context, cannot string, v *store.VM, name string) error {
	image, err := m.Store.Image(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return api.NotFound("%s: there is no image %q", cannot, name).
			WithHint("see `banger image list`; `banger image import NAME FILE.tar` makes one")
	} else if err != nil {
		return err
	}
	v.ImageID, v.ImageName = image.ID, image.Name
	return nil
}

func (m *Manager) useKernel(ctx context.Context, cannot string, v *store.VM, name string) error {
	kernel, err := m.Store.Kernel(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return api.NotFound("%s: there is no kernel %q", cannot, name).
			WithHint("see `banger kernel list`; `banger kernel import NAME --from /boot/vmlinuz-…` makes one")
	} else if err != nil {
		return err
	}
	v.KernelID, v.KernelName = kernel.ID, kernel.Name
	return nil
}

// check refuses what Firecracker, the VM's kernel or this host cannot do.
func (m *Manager) check(ctx context.Context, cannot string, v *store.VM) error {
	if most := min(maxVCPU, runtime.NumCPU()); v.VCPU < 1 || v.VCPU > most {
		return api.BadRequest("%s: %d vCPUs are not possible on this host", cannot, v.VCPU).WithHint("give 1 to %d with --vcpu", most)
	}
	kernel, err := m.Store.KernelByID(ctx, v.KernelID)
	if err != nil {
		return err
	}
	most, err := hostMemory()
	if err != nil {
		return err
	}
	if v.MemoryMiB < kernel.MinMemoryMiB || v.MemoryMiB > most {
		return api.BadRequest("%s: %d MiB of memory are not possible with kernel %q on this host", cannot, v.MemoryMiB, kernel.Name).
			WithHint("give %d to %d MiB with --memory", kernel.MinMemoryMiB, most)
	}
	if v.DiskBytes != 0 && (v.DiskBytes < minDisk || v.DiskBytes > maxDisk || v.DiskBytes%diskUnit != 0) {
		return api.BadRequest("%s: a work disk of %d bytes is not possible", cannot, v.DiskBytes).
			WithHint("give 64MiB to 16TiB with --disk, in whole MiB")
	}
	if v.Network != "" && !guest.ValidName(v.Network) {
		return api.BadRequest("%s: %q is no name of a network", cannot, v.Network).
			WithHint("a name has 1 to 63 characters of a-z, 0-9 and '-', and no '-' at either end")
	}
	switch v.Restart {
	case api.RestartNo, api.RestartOnFailure, api.RestartAlways, api.RestartNever:
	default:
		return api.BadRequest("%s: %q is no restart policy", cannot, v.Restart).WithHint("give no, on-failure, always or never with --restart")
	}
	if v.IdleStop < 0 || v.IdleStop > maxIdle {
		return api.BadRequest("%s: a VM cannot be stopped after %d idle seconds", cannot, v.IdleStop).WithHint("give a duration, or 0 for never, with --idle-stop")
	}
	return checkShares(cannot, v)
}

// checkShares refuses weights and ceilings that systemd would refuse, or that
// no guest could live with.
func checkShares(cannot string, v *store.VM) error {
	for _, w := range []struct {
		flag  string
		value int
	}{{"--cpu-weight", v.CPUWeight}, {"--io-weight", v.IOWeight}} {
		if w.value < 0 || w.value > maxWeight {
			return api.BadRequest("%s: a weight of %d is not possible", cannot, w.value).WithHint("give 1 to %d with %s", maxWeight, w.flag)
		}
	}
	if v.CPULimit != 0 && (v.CPULimit < minCPULimit || v.CPULimit > maxCPULimit) {
		return api.BadRequest("%s: a ceiling of %d thousandths of a CPU is not possible", cannot, v.CPULimit).
			WithHint("give 0.01 to %d CPUs, or 0 for none, with --cpu-limit", maxVCPU)
	}
	if v.IOLimit != 0 && (v.IOLimit < minIOLimit || v.IOLimit > maxIOLimit) {
		return api.BadRequest("%s: a ceiling of %d bytes a second is not possible", cannot, v.IOLimit).
			WithHint("give 1MiB to 1TiB, or 0 for none, with --io-limit")
	}
	return nil
}

// hostMemory is what the host has, in MiB.
func hostMemory() (int, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("cannot ask for the host's memory: %w", err)
	}
	return int(info.Totalram * uint64(info.Unit) >> 20), nil
}
