package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/guest"
	"banger/internal/helper"
	"banger/internal/installed"
	"banger/internal/paths"
)

// preflight refuses a start that cannot succeed, before anything is made.
func (r *startRun) preflight(ctx context.Context) error {
	v := r.vm
	var err error
	if r.kernel, err = r.m.Store.KernelByID(ctx, v.KernelID); err != nil {
		return err
	}
	if _, err := os.Stat(r.abs(r.base)); err != nil {
		return api.Problemf(409, api.CodePrerequisite, "the disk of image %q is not usable: %v", v.ImageName, err).
			WithHint("bring it back, or import the image under another name and `banger vm set %s --image`", v.Name)
	}
	// The helper's registry is the truth, and asking again changes nothing.
	slot, err := r.m.Helper.Reserve(ctx, v.ID)
	if err != nil {
		return err
	}
	if v.Slot != slot.Slot || v.UID != slot.UID {
		v.Slot, v.UID = slot.Slot, slot.UID
		if err := r.m.Store.UpdateVM(ctx, v); err != nil {
			return err
		}
	}
	r.jail = jailOf(v.ID, v.UID)
	if _, ok := r.m.Record.GuestAddress(v.Slot); !ok {
		return api.Problemf(409, api.CodePrerequisite, "the network %s has no address left for slot %d", r.m.Record.Network, v.Slot).
			WithHint("delete VMs that are no longer needed, or install with a larger network")
	}
	// Somebody may want it again whose delete failed when the disks had gone. Where
	// some are left, nobody knows which.
	if err := os.Remove(r.m.doomedDir(v.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return api.Conflict("its delete has begun, and was not completed: %v", err).
			WithHint("`banger vm delete %s` completes it", v.Name)
	}
	if err := os.MkdirAll(r.m.dir(v), 0o700); err != nil {
		return fmt.Errorf("cannot make the VM's directory: %w", err)
	}
	if err := r.checkRoom(); err != nil {
		return err
	}
	return r.m.each(func(c capability) error { return c.preflight(ctx, r) })
}

func (r *startRun) checkRoom() error {
	if err := refuse(507, api.CodeNoSpace, r.m.room()); err != nil {
		return err
	}
	total, err := hostMemory()
	if err != nil {
		return err
	}
	if r.vm.MemoryMiB > total {
		return api.Problemf(409, api.CodePrerequisite, "the host has %d MiB of memory, the VM wants %d", total, r.vm.MemoryMiB).
			WithHint("give less with --memory")
	}
	return nil
}

// cleanupRuntime removes what an earlier run of this VM may have left.
func (r *startRun) cleanupRuntime(ctx context.Context) error {
	if !r.again {
		return nil
	}
	return r.m.clear(ctx, r.vm)
}

// ensureBridge asks for the bridge and its rules, which a firewall's restart
// or an administrator may have taken away.
func (r *startRun) ensureBridge(ctx context.Context) error {
	n, err := r.m.Helper.EnsureBridge(ctx)
	for _, w := range n.Warnings {
		r.m.Log.WarnContext(ctx, "network", "vm", r.vm.ID, "warning", w)
	}
	return err
}

// checkJailParents makes sure that nobody but root can have a hand in where
// the jail will be.
func (r *startRun) checkJailParents(context.Context) error {
	return refuse(412, api.CodePrerequisite, r.m.jailParents())
}

// prepareSockets makes sure that no jail of an earlier run is there, in which
// something could answer in place of the new VMM.
func (r *startRun) prepareSockets(ctx context.Context) error {
	_, err := os.Lstat(r.jail.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot look for an earlier jail: %w", err)
	}
	return r.m.clear(ctx, r.vm)
}

// makeOverlay makes the sparse file that takes the guest's writes. It is as
// large as the image plus what dm-snapshot needs for its tables, so it cannot
// fill by itself.
func (r *startRun) makeOverlay(context.Context) error {
	base, err := os.Stat(r.abs(r.base))
	if err != nil {
		return fmt.Errorf("cannot find the image's filesystem: %w", err)
	}
	if err := r.takeBackOverlay(); err != nil {
		return err
	}
	// Here: what the last run left is gone, its verdict is there, and nothing of
	// this run has touched the disks yet.
	r.clean = r.m.endedClean(r.vm)
	r.m.forgetCleanEnd(r.vm.ID)
	f, err := os.OpenFile(r.abs(r.overlay), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make the overlay: %w", err)
	}
	// An empty one is what a crash in this function left.
	if st, err := f.Stat(); err != nil || st.Size() > 0 {
		return errors.Join(err, f.Close())
	}
	r.overlayMade = true
	const chunk = 4096
	size := base.Size() + base.Size()/100 + 1<<20
	return errors.Join(f.Truncate((size+chunk-1)/chunk*chunk), f.Close())
}

// takeBackOverlay undoes a change of image that a crash cut off before it was
// recorded, and drops what one left behind that was. Whatever else lies there is
// somebody's copy.
func (r *startRun) takeBackOverlay() error {
	overlay := r.abs(r.overlay)
	if _, err := os.Lstat(overlay); errors.Is(err, fs.ErrNotExist) {
		err := os.Rename(asideOverlay(overlay, r.vm.ImageID), overlay)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot take the root disk back: %w", err)
		}
	}
	left, err := filepath.Glob(asideOverlay(overlay, "*"))
	for _, old := range left {
		err = errors.Join(err, os.Remove(old))
	}
	return err
}

func (r *startRun) removeOverlay(context.Context) error {
	if !r.overlayMade {
		return nil
	}
	if err := os.Remove(r.abs(r.overlay)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (r *startRun) attach(ctx context.Context) error {
	_, err := r.m.Helper.Attach(ctx, helper.AttachRequest{ID: r.vm.ID, Base: r.base, Overlay: r.overlay})
	return err
}

func (r *startRun) detach(ctx context.Context) error { return r.m.Helper.Cleanup(ctx, r.vm.ID) }

// checkRoot checks the filesystem of a root disk that a guest has written to.
func (r *startRun) checkRoot(ctx context.Context) error {
	if r.overlayMade {
		return nil
	}
	return r.fsck(ctx, "root")
}

// fsck checks a disk, unless the last guest ended in order and nobody has touched
// the disks since.
func (r *startRun) fsck(ctx context.Context, disk string) error {
	if r.clean && !r.repair {
		return nil
	}
	return r.clock.without(func() error { // a helper bounds it
		c, err := r.m.Helper.Fsck(ctx, helper.FsckRequest{ID: r.vm.ID, Disk: disk, Repair: r.repair})
		if err == nil && c.Status != 0 {
			r.m.Log.WarnContext(ctx, "the filesystem was mended", "vm", r.vm.ID, "disk", disk, "output", c.Output)
		}
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Code == helper.CodeDamaged {
			if r.repair {
				return p.WithHint("nothing more can be done to it here; put a copy in its place, or `banger vm delete %s`", r.vm.Name)
			}
			return p.WithHint("`banger vm start --repair %s` mends it, and may move files to lost+found", r.vm.Name)
		}
		return err
	})
}

// writeIdentity renders and checks what the guest will be told, and keeps it
// for people who look into a VM that does not come up.
func (r *startRun) writeIdentity(context.Context) error {
	v := r.vm
	host, err := r.m.Hosts.NewHost(v.ID, v.Name)
	if err != nil {
		return err
	}
	addr, _ := r.m.Record.GuestAddress(v.Slot) // preflight has refused a bad one
	mac := installed.GuestMAC(addr.Addr()).String()
	r.machine = machine{
		drives: []firecracker.Drive{{ID: "rootfs", Path: paths.JailRootfs, Cache: "Writeback"}},
		cards:  []firecracker.Card{{ID: "eth0", Tap: "tap0", MAC: mac}},
		guest: guest.Identity{
			ID: v.ID, Hostname: v.Name,
			Root:    guest.Root{Device: "/dev/vda", FSType: "ext4"},
			SSH:     guest.SSH{UserCA: r.m.Hosts.UserCA(), HostKey: host.Private, HostCert: host.Certificate},
			Network: &guest.Network{MAC: mac, Address: addr.String(), Gateway: r.m.Record.Gateway().String()},
			Files: []guest.File{
				{Path: "/etc/hostname", Mode: 0o644, Content: []byte(v.Name + "\n")},
				{Path: "/etc/hosts", Mode: 0o644, Content: fmt.Appendf(nil,
					"127.0.0.1\tlocalhost\n127.0.1.1\t%s\n::1\tlocalhost ip6-localhost ip6-loopback\n", v.Name)},
			},
		}}
	if err := r.m.each(func(c capability) error { return c.contribute(r, &r.machine) }); err != nil {
		return err
	}
	if err := r.machine.guest.Validate(); err != nil {
		return err
	}
	kept := r.machine.guest
	kept.SSH.HostKey = "(made for this run, not kept)"
	raw, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.m.dir(v), "guest.json"), raw, 0o600); err != nil {
		return fmt.Errorf("cannot write the guest's configuration: %w", err)
	}
	return nil
}

func (r *startRun) prepareFeatures(ctx context.Context) error {
	return r.m.each(func(c capability) error { return c.prepareHost(ctx, r) })
}

func (r *startRun) cleanupFeatures(ctx context.Context) error {
	return r.m.cleanupCapabilities(ctx, r.vm)
}

func tapOf(id string) string { return "tap" + id }

// reserveTap makes sure that the name which the tap gets at its hand-over is
// free: one that a crash left is of no VM any more.
func (r *startRun) reserveTap(ctx context.Context) error {
	_, err := os.Lstat(filepath.Join(sysNet, tapOf(r.vm.ID)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot look for an earlier tap: %w", err)
	}
	return api.Internal("there is a network device %s already", tapOf(r.vm.ID)).
		WithHint("`banger vm stop %s` removes what an earlier run left", r.vm.Name)
}

// removeTap needs to do something only if the VMM's end has not.
func (r *startRun) removeTap(ctx context.Context) error {
	if _, err := os.Lstat(filepath.Join(sysNet, tapOf(r.vm.ID))); err != nil {
		return nil //nolint:nilerr // there is none
	}
	return r.m.Helper.Cleanup(ctx, r.vm.ID)
}

const sysNet = "/sys/class/net"

// chooseMetrics has nothing to make: vm.launch puts the FIFO into the new jail,
// for root to read.
func (r *startRun) chooseMetrics(context.Context) error { return nil }

// checkBinaries looks at the programs before root does, for a clearer word.
func (r *startRun) checkBinaries(context.Context) error {
	return refuse(412, api.CodePrerequisite, r.m.binaries())
}
