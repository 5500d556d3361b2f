package vm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/guest"
	"banger/internal/helper"
	"banger/internal/paths"
)

const bootArgs = "console=ttyS0 quiet loglevel=3 reboot=k panic=1 i8042.noaux i8042.nomux i8042.dumbkbd"

// guestCID is the same in every VM: each has a vsock of its own.
const guestCID = 3

// minFree is what must be free on the state directory's filesystem: a full one
// makes a dm-snapshot invalid for good.
const minFree = 512 << 20

func (r *startRun) preflight(ctx context.Context) error {
	v := r.vm
	var err error
	if r.kernel, err = r.m.Store.KernelByID(ctx, v.KernelID); err != nil {
		return err
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
	if err := os.MkdirAll(r.m.dir(v), 0o700); err != nil {
		return fmt.Errorf("cannot make the VM's directory: %w", err)
	}
	return r.checkRoom()
}

func (r *startRun) checkRoom() error {
	var st unix.Statfs_t
	if err := unix.Statfs(r.m.StateDir, &st); err != nil {
		return fmt.Errorf("cannot ask %s for free space: %w", r.m.StateDir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < minFree {
		return api.Problemf(507, api.CodeNoSpace, "only %d MiB are free in %s, a VM needs %d", free>>20, r.m.StateDir, minFree>>20).
			WithHint("delete VMs or images that are no longer needed, see `banger vm list` and `banger image list`")
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("cannot ask for the host's memory: %w", err)
	}
	if total := int(info.Totalram * uint64(info.Unit) >> 20); r.vm.MemoryMiB > total {
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

// makeOverlay makes the sparse file that takes the guest's writes. It is as
// large as the image plus what dm-snapshot needs for its tables, so it cannot
// fill by itself.
func (r *startRun) makeOverlay(context.Context) error {
	base, err := os.Stat(r.abs(r.base))
	if err != nil {
		return fmt.Errorf("cannot find the image's filesystem: %w", err)
	}
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

// writeIdentity renders and checks what the guest will be told, and keeps it
// for people who look into a VM that does not come up.
func (r *startRun) writeIdentity(context.Context) error {
	host, err := r.m.Hosts.NewHost(r.vm.ID, r.vm.Name)
	if err != nil {
		return err
	}
	r.doc = guest.Identity{
		ID: r.vm.ID, Hostname: r.vm.Name,
		Root: guest.Root{Device: "/dev/vda", FSType: "ext4"},
		SSH:  guest.SSH{UserCA: r.m.Hosts.UserCA(), HostKey: host.Private, HostCert: host.Certificate},
		Files: []guest.File{
			{Path: "/etc/hostname", Mode: 0o644, Content: []byte(r.vm.Name + "\n")},
			{Path: "/etc/hosts", Mode: 0o644, Content: fmt.Appendf(nil,
				"127.0.0.1\tlocalhost\n127.0.1.1\t%s\n::1\tlocalhost ip6-localhost ip6-loopback\n", r.vm.Name)},
		},
	}
	if err := r.doc.Validate(); err != nil {
		return err
	}
	kept := r.doc
	kept.SSH.HostKey = "(made for this run, not kept)"
	raw, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.m.dir(r.vm), "guest.json"), raw, 0o600); err != nil {
		return fmt.Errorf("cannot write the guest's configuration: %w", err)
	}
	return nil
}

// launch starts the VMM and boots the guest.
func (r *startRun) launch(ctx context.Context) error {
	r.launched = true // from here on there may be something to kill
	if err := r.launchVMM(ctx); err != nil {
		return err
	}
	return r.orItsEnd(r.boot(ctx))
}

// boot configures the VMM, hands its devices over and starts the guest.
func (r *startRun) boot(ctx context.Context) error {
	v := r.vm
	fc := firecracker.New(r.jail.dialAPI)
	defer fc.Close()
	if err := fc.SetMachine(ctx, firecracker.Machine{VCPU: v.VCPU, MemoryMiB: v.MemoryMiB}); err != nil {
		return err
	}
	if err := fc.SetBoot(ctx, firecracker.Boot{Kernel: paths.JailKernel, Initrd: paths.JailInitrd, Args: bootArgs}); err != nil {
		return err
	}
	if err := fc.AddDrive(ctx, firecracker.Drive{ID: "rootfs", Path: paths.JailRootfs, Cache: "Writeback"}); err != nil {
		return err
	}
	if err := fc.SetVsock(ctx, firecracker.Vsock{CID: guestCID, Path: paths.JailVsock}); err != nil {
		return err
	}
	if err := r.m.Helper.Handover(ctx, v.ID); err != nil {
		return err
	}
	return fc.Start(ctx)
}

func (r *startRun) launchVMM(ctx context.Context) error {
	resend := false
	for {
		kernel, initrd, err := r.m.Kernels.Blobs(ctx, r.kernel, resend)
		if err != nil {
			return err
		}
		_, err = r.m.Helper.Launch(ctx, helper.LaunchRequest{ID: r.vm.ID, Kernel: kernel, Initrd: initrd,
			VCPU: r.vm.VCPU, MemoryMiB: r.vm.MemoryMiB})
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Code == helper.CodeBlobUnknown && !resend {
			resend = true
			continue
		}
		return err
	}
}

// endTime is how long the verdict on a VMM may take to come after its sockets
// have gone dead.
const endTime = time.Second

// orItsEnd prefers the words of the VMM's end, if that is what err is about.
func (r *startRun) orItsEnd(err error) error {
	if err == nil {
		return nil
	}
	if runs, statErr := unitRuns(r.vm.ID); statErr != nil || runs {
		return err
	}
	select {
	case e := <-r.ended:
		return errors.New(describe(e))
	case <-time.After(endTime):
		return err
	}
}

func (r *startRun) kill(ctx context.Context) error {
	if !r.launched {
		return nil
	}
	return r.m.Helper.Kill(ctx, r.vm.ID)
}

// retryAgent is the pause between two attempts to reach the agent. A guest
// whose vsock driver is not up yet makes the attempt itself wait, so this only
// spans the moment between driver and listener.
const retryAgent = 5 * time.Millisecond

// waitAgent gives the guest its identity as soon as the agent listens and
// returns when sessions work, or when the VMM ends.
func (r *startRun) waitAgent(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case e := <-r.ended:
			cancel(fmt.Errorf("%s while the guest was booting", describe(e)))
		case <-ctx.Done():
		}
	}()
	agent := r.jail.agent()
	defer agent.Close()
	for {
		err := r.identify(ctx, agent)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !errors.Is(err, guest.ErrRefused) {
			return r.orItsEnd(err)
		}
		select {
		case <-time.After(retryAgent):
		case <-ctx.Done():
		}
	}
}

func (r *startRun) identify(ctx context.Context, agent *guest.Client) error {
	// The moment of sending: the guest sets its clock by it.
	r.doc.UnixNano = time.Now().UnixNano()
	r.doc.Entropy = make([]byte, 64)
	_, _ = rand.Read(r.doc.Entropy) // never fails, see crypto/rand
	h, err := agent.SetIdentity(ctx, r.doc)
	if err != nil {
		return err
	}
	r.vm.Guest = &api.Guest{Kernel: h.Kernel, BootID: h.BootID, Init: h.Init, Agent: h.Version}
	return nil
}

func (r *startRun) persist(ctx context.Context) error {
	return r.m.setState(ctx, r.vm, api.StateRunning, "")
}
