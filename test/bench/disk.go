package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/guest"
	"banger/internal/identity"
	"banger/internal/paths"
)

// newFloor takes kernel, initrd, image and size from a running VM and makes a
// disk of its own over the same image.
func (b *bench) newFloor(ctx context.Context, vm api.VM, name string) (*floor, error) {
	jail := filepath.Join(paths.JailDir, vm.ID, "root")
	dir := filepath.Join(paths.HelperDir, "bench-"+name)
	f := &floor{name: name, record: b.record, dir: dir, kernel: filepath.Join(dir, "vmlinux"), initrd: filepath.Join(dir, "initrd"),
		vcpu: vm.VCPU, memory: vm.MemoryMiB,
		bootArgs: "console=ttyS0 quiet loglevel=3 reboot=k panic=1 i8042.noaux i8042.nomux i8042.dumbkbd"}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o711)); err != nil {
		return nil, err
	}
	// Names of its own: the VM may go before the floor does.
	err := errors.Join(os.Link(filepath.Join(jail, "vmlinux"), f.kernel), os.Link(filepath.Join(jail, "initrd"), f.initrd))
	if err == nil {
		f.authority, err = identity.Open(filepath.Join(dir, "identity"))
	}
	if err == nil {
		err = f.attach(ctx, vm.ID)
	}
	if err == nil {
		err = f.plug(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, f.close(ctx))
	}
	return f, nil
}

// close removes all that the floor made.
func (f *floor) close(ctx context.Context) error {
	var errs []error
	for _, argv := range slices.Backward(f.undo) {
		errs = append(errs, run(context.WithoutCancel(ctx), argv...))
	}
	f.undo = nil
	return errors.Join(append(errs, os.RemoveAll(f.dir))...)
}

// attach makes the floor's disk: the VM's image under a snapshot.
func (f *floor) attach(ctx context.Context, id string) error {
	output := func(argv ...string) (string, error) {
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%v: %w: %s", argv, err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	base, err := baseOf(id)
	if err != nil {
		return err
	}
	cow := filepath.Join(f.dir, "overlay.cow")
	if err := errors.Join(os.WriteFile(cow, nil, 0o600), os.Truncate(cow, 34<<30)); err != nil {
		return err
	}
	var loops []string
	for _, args := range [][]string{{"-r", base}, {cow}} {
		loop, err := output(append([]string{"losetup", "--show", "-f"}, args...)...)
		if err != nil {
			return err
		}
		f.undo, loops = append(f.undo, []string{"losetup", "-d", loop}), append(loops, loop)
	}
	sectors, err := output("blockdev", "--getsz", loops[0])
	if err != nil {
		return err
	}
	disk := "bench-" + f.name
	if _, err := output("dmsetup", "create", disk, "--table", "0 "+sectors+" snapshot "+loops[0]+" "+loops[1]+" P 8"); err != nil {
		return err
	}
	f.undo = append(f.undo, []string{"dmsetup", "remove", "--retry", disk})
	var st unix.Stat_t
	if err := unix.Stat("/dev/mapper/"+disk, &st); err != nil {
		return err
	}
	f.disk = st.Rdev
	return nil
}

// plug makes the floor's tap, which every VM of it has a card on, as banger's have.
// It is never moved.
func (f *floor) plug(ctx context.Context) error {
	tap := "bench-" + f.name
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(f.name)) // never fails
	n := byte(sum.Sum32()) &^ 3
	host, mac := netip.AddrFrom4([4]byte{172, 31, 255, n + 1}), fmt.Sprintf("02:be:00:00:00:%02x", n)
	f.address = host.Next()
	for _, argv := range [][]string{
		{"ip", "tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr", "user", strconv.Itoa(f.uid())},
		{"ip", "address", "add", host.String() + "/30", "dev", tap},
		{"ip", "link", "set", tap, "up"},
	} {
		if err := run(ctx, argv...); err != nil {
			return err
		}
		if argv[1] == "tuntap" {
			f.undo = append(f.undo, []string{"ip", "link", "delete", tap})
		}
	}
	f.card = firecracker.Card{ID: "eth0", Tap: tap, MAC: mac}
	f.network = &guest.Network{MAC: mac, Address: f.address.String() + "/30", Gateway: host.String()}
	return nil
}

// baseOf finds the image file under a VM's root disk: of the loop devices below
// it, the one that is read only.
func baseOf(id string) (string, error) {
	names, err := filepath.Glob("/sys/class/block/dm-*/dm/name")
	if err != nil {
		return "", err
	}
	for _, n := range names {
		raw, err := os.ReadFile(n)
		if err != nil || strings.TrimSpace(string(raw)) != "fc-rootfs-"+id { // it may go in this moment
			continue
		}
		loops, err := filepath.Glob(filepath.Join(filepath.Dir(n), "../slaves/loop*"))
		if err != nil {
			return "", err
		}
		for _, l := range loops {
			ro, err := os.ReadFile(filepath.Join(l, "ro"))
			if err != nil {
				return "", err
			}
			if strings.TrimSpace(string(ro)) == "1" {
				file, err := os.ReadFile(filepath.Join(l, "loop/backing_file"))
				return strings.TrimSpace(string(file)), err
			}
		}
	}
	return "", fmt.Errorf("cannot find the image under VM %s", id)
}
