package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/firecracker"
	"banger/internal/guest"
	"banger/internal/identity"
	"banger/internal/installed"
)

// The floor: what the kernel, the jailer, Firecracker and the guest cost by
// themselves. It drives them directly, as root, with the same kernel, initrd,
// image, size and devices; its disk and tap are ready before the clock starts.
type floor struct {
	name      string
	record    installed.Record
	authority *identity.Authority
	dir       string // on the filesystem of the blobs, for hard links
	kernel    string
	initrd    string
	disk      uint64 // device number
	vcpu      int
	memory    int
	bootArgs  string
	card      firecracker.Card
	network   *guest.Network // behind the card
	address   netip.Addr     // of its VMs
	bare      bool           // Firecracker without its jailer
	cgroup    *os.File       // of its own, where its memory is counted; nil if it is not

	undo  [][]string // commands that take the disk apart, in the order of making
	count int
}

// floorVM is one VM of the floor.
type floorVM struct {
	f    *floor
	id   string
	root string
	cmd  *exec.Cmd
}

// floorTimes of one start, each since the spawn.
type floorTimes struct{ api, configured, started, ready, output time.Duration }

func (f *floor) start(ctx context.Context) (vm *floorVM, t floorTimes, err error) {
	f.count++
	id := fmt.Sprintf("%012x", f.count)
	uid := f.uid()
	vm = &floorVM{f: f, id: id, root: filepath.Join(f.dir, "firecracker", id, "root")}
	begun := time.Now()
	if err := errors.Join(os.MkdirAll(vm.root, 0o755),
		os.Link(f.kernel, filepath.Join(vm.root, "vmlinux")), os.Link(f.initrd, filepath.Join(vm.root, "initrd")),
		unix.Mknod(filepath.Join(vm.root, "rootfs"), unix.S_IFBLK|0o600, int(f.disk)),
		os.Chown(filepath.Join(vm.root, "rootfs"), uid, uid)); err != nil {
		return vm, t, err
	}
	if err := vm.spawn(ctx); err != nil {
		return vm, t, err
	}
	api := filepath.Join(vm.root, "run/api.sock")
	for {
		if c, err := net.Dial("unix", api); err == nil {
			_ = c.Close()
			break
		}
		time.Sleep(time.Millisecond)
	}
	t.api = time.Since(begun)
	fc := firecracker.New(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", api)
	}, new(firecracker.Calls))
	defer fc.Close()
	if err := errors.Join(
		fc.SetMachine(ctx, firecracker.Machine{VCPU: f.vcpu, MemoryMiB: f.memory}),
		fc.SetBoot(ctx, firecracker.Boot{Kernel: vm.path("/vmlinux"), Initrd: vm.path("/initrd"), Args: f.bootArgs}),
		fc.AddDrive(ctx, firecracker.Drive{ID: "rootfs", Path: vm.path("/rootfs"), Cache: "Writeback"}),
		fc.AddCard(ctx, f.card),
		fc.SetVsock(ctx, firecracker.Vsock{CID: 3, Path: vm.path("/run/vsock.sock")})); err != nil {
		return vm, t, err
	}
	t.configured = time.Since(begun)
	if err := fc.Start(ctx); err != nil {
		return vm, t, err
	}
	t.started = time.Since(begun)
	if err := vm.identify(ctx); err != nil {
		return vm, t, err
	}
	t.ready = time.Since(begun)
	out, err := vm.run(ctx, "echo", "hello")
	t.output = time.Since(begun)
	if err == nil && out != "hello\n" {
		err = fmt.Errorf("echo said %q", out)
	}
	return vm, t, err
}

// spawn starts the jailer, or Firecracker itself.
func (vm *floorVM) spawn(ctx context.Context) error {
	f, uid := vm.f, strconv.Itoa(vm.f.uid())
	vm.cmd = exec.CommandContext(ctx, f.record.Jailer, "--id", vm.id, "--exec-file", f.record.Firecracker,
		"--uid", uid, "--gid", uid, "--chroot-base-dir", f.dir, "--", "--api-sock", "/run/api.sock")
	if f.bare {
		if err := os.Mkdir(filepath.Join(vm.root, "run"), 0o755); err != nil {
			return err
		}
		vm.cmd = exec.CommandContext(ctx, f.record.Firecracker, "--id", vm.id, "--api-sock", vm.path("/run/api.sock"))
	}
	if f.cgroup != nil {
		vm.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.cgroup.Fd())}
	}
	return vm.cmd.Start()
}

// path is where Firecracker finds a file of its root.
func (vm *floorVM) path(name string) string {
	if vm.f.bare {
		return vm.root + name
	}
	return name
}

// uid is the last of banger's range.
func (f *floor) uid() int { return f.record.UIDBase + f.record.UIDCount - 1 }

func (vm *floorVM) dial(ctx context.Context, port uint32) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", filepath.Join(vm.root, "run/vsock.sock"))
	if err != nil {
		return nil, err
	}
	if err := guest.Connect(ctx, c, port); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, c.SetDeadline(time.Time{})
}

func (vm *floorVM) identify(ctx context.Context) error {
	host, err := vm.f.authority.NewHost(vm.id, "floor")
	if err != nil {
		return err
	}
	agent := guest.NewClient(vm.dial)
	defer agent.Close()
	for {
		_, err := agent.SetIdentity(ctx, guest.Identity{ID: vm.id, Hostname: "floor", UnixNano: time.Now().UnixNano(),
			Root: guest.Root{Device: "/dev/vda", FSType: "ext4"}, Network: vm.f.network,
			SSH: guest.SSH{UserCA: vm.f.authority.UserCA(), HostKey: host.Private, HostCert: host.Certificate}})
		if !errors.Is(err, guest.ErrRefused) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// roundTrip is the least a question to a guest can cost: a new vsock
// connection and one answer.
func (vm *floorVM) roundTrip(ctx context.Context) error {
	agent := guest.NewClient(vm.dial)
	defer agent.Close()
	_, err := agent.Health(ctx)
	return err
}

// run is a command in the guest over a new vsock connection, its streams treated
// as the CLI does: no input, both outputs read at the same time. What it says is
// returned.
func (vm *floorVM) run(ctx context.Context, argv ...string) (string, error) {
	c, err := vm.dial(ctx, guest.ControlPort)
	if err != nil {
		return "", err
	}
	defer c.Close()
	s, err := guest.StartExec(ctx, c, guest.Exec{Argv: argv})
	if err != nil {
		return "", err
	}
	if err := s.Stdin.Close(); err != nil {
		return "", err
	}
	var errs []byte
	var errsErr error
	var reading sync.WaitGroup
	reading.Go(func() { errs, errsErr = io.ReadAll(s.Stderr) })
	out, err := io.ReadAll(s.Stdout)
	reading.Wait()
	if err := errors.Join(err, errsErr); err != nil {
		return "", err
	}
	exit, err := s.Wait()
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%v ended with %+v and said %q", argv, exit, errs)
	}
	return string(out), err
}

// stop is SIGKILL, wait, and removal of the jail.
func (vm *floorVM) stop() error {
	if vm.cmd != nil && vm.cmd.Process != nil {
		if err := vm.cmd.Process.Kill(); err != nil {
			return err
		}
		_ = vm.cmd.Wait() // "signal: killed" is what was asked for
	}
	return vm.remove()
}

// remove takes the jail of a VM that has ended away.
func (vm *floorVM) remove() error { return os.RemoveAll(filepath.Dir(vm.root)) }
