package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
)

const qemu = "qemu-system-x86_64"

// Ways to run the machine's processor.
const (
	accelKVM = "kvm"
	accelTCG = "tcg" // emulation
)

// guest is what QEMU is asked to run: the files of dir, and the numbers.
type guest struct {
	dir  string
	disk string // of dir
	// drives are further files of dir, each attached read-only and found in
	// the guest as /dev/disk/by-id/virtio-banger-NAME. An emulated guest reads
	// them fifty times faster than it reads from the network.
	drives    []drive
	cpus      int
	memoryMiB int
	accel     string
	// disposable says that the host may lose what the guest has written.
	disposable bool
}

type drive struct{ name, file string }

// readyTimeout is how long a boot may take. Seen here: 12 s emulated.
func (g guest) readyTimeout() time.Duration {
	if g.accel == accelKVM {
		return time.Minute
	}
	return 4 * time.Minute
}

// args is QEMU's command line. Paths are relative to the machine's directory,
// in which QEMU runs: no comma of a user's directory can end up in an option.
func (g guest) args(port int) []string {
	cache := "writeback"
	if g.disposable {
		cache = "unsafe"
	}
	args := []string{"-name", guestName(g.dir), "-no-user-config", "-nodefaults", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny",
		"-M", "q35", "-smp", fmt.Sprint(g.cpus), "-m", fmt.Sprint(g.memoryMiB)}
	args = append(args, accelArgs(g.accel)...)
	args = append(args, "-kernel", kernelFile, "-initrd", initrdFile, "-append", bootArgs(g.accel),
		"-drive", "id=root,if=none,format=qcow2,discard=unmap,cache="+cache+",file="+g.disk,
		"-device", "virtio-blk-pci,drive=root,serial=banger-root")
	for _, d := range append([]drive{{"seed", seedFile}}, g.drives...) {
		args = append(args, "-drive", "id="+d.name+",if=none,format=raw,readonly=on,file="+d.file,
			"-device", "virtio-blk-pci,drive="+d.name+",serial=banger-"+d.name)
	}
	return append(args,
		"-netdev", fmt.Sprintf("user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:%d-:22", port),
		"-device", "virtio-net-pci,netdev=net,romfile=",
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci",
		"-chardev", "file,id=ready,path=/dev/fd/3",
		"-device", "virtserialport,chardev=ready,name=banger.ready",
		"-serial", "file:console.log")
}

func accelArgs(accel string) []string {
	if accel == accelKVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"}
}

func bootArgs(accel string) string {
	args := "root=LABEL=banger-machine rw console=ttyS0 quiet systemd.show_status=0 mitigations=off panic=10"
	if accel == accelTCG {
		// The emulated processor is AMD's; trying these takes seconds, in vain.
		args += " modprobe.blacklist=kvm_intel,powernow_k8"
	}
	return args
}

// boot starts QEMU for g and returns when the guest says that it can be
// reached. QEMU then lives on by itself, recorded in run.json; if anything
// fails, or ctx ends before, it is gone and so is the record. The caller has
// the machine's lock.
func (g guest) boot(ctx context.Context) (run, error) {
	r, ready, err := g.start()
	if err != nil {
		return run{}, errors.Join(err, killRun(g.dir))
	}
	defer ready.Close()
	if err := g.waitReady(ctx, ready); err != nil {
		return run{}, errors.Join(err, killRun(g.dir))
	}
	return r, nil
}

// start starts QEMU and returns its record and the pipe on which the guest
// will say that it is ready.
func (g guest) start() (run, *os.File, error) {
	port, err := freePort()
	if err != nil {
		return run{}, nil, err
	}
	program, err := lookTool(qemu)
	if err != nil {
		return run{}, nil, err
	}
	if err := os.WriteFile(filepath.Join(g.dir, sshConfigFile), []byte(sshConfig(g.dir, port)), 0o600); err != nil {
		return run{}, nil, fmt.Errorf("cannot write ssh_config: %w", err)
	}
	// A connection that was shared with an earlier run's commands may not have
	// noticed that its QEMU was killed.
	for _, user := range []string{Root, Owner} {
		if err := os.Remove(filepath.Join(g.dir, "ssh-"+user)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return run{}, nil, fmt.Errorf("cannot forget an old connection: %w", err)
		}
	}
	log, err := os.Create(filepath.Join(g.dir, "qemu.log"))
	if err != nil {
		return run{}, nil, fmt.Errorf("cannot write QEMU's log: %w", err)
	}
	defer log.Close()
	ready, said, err := os.Pipe()
	if err != nil {
		return run{}, nil, err
	}
	defer said.Close()                            // QEMU has its own; when that closes, the guest is gone
	cmd := exec.Command(program, g.args(port)...) //nolint:noctx // it outlives this command
	cmd.Dir, cmd.Stdout, cmd.Stderr = g.dir, log, log
	// QEMU reads nothing from the pipe, but without a reader it would try again
	// for ever, and do nothing else, once the guest says the word a second time.
	// By a description of its own: sharing ours would take its deadline away.
	reader, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", descriptor(ready)))
	if err != nil {
		_ = ready.Close()
		return run{}, nil, fmt.Errorf("cannot share QEMU's pipe: %w", err)
	}
	defer reader.Close()
	cmd.ExtraFiles = []*os.File{said, reader}
	// A session of its own: neither Ctrl-C nor the end of the terminal is meant for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = ready.Close()
		return run{}, nil, fmt.Errorf("cannot start QEMU: %w", err)
	}
	go func() { _ = cmd.Wait() }() // it must not stay a zombie while we wait for its end
	r, err := newRun(cmd.Process.Pid, port, g.accel)
	if err == nil {
		err = writeJSON(filepath.Join(g.dir, runFile), r)
	}
	if err != nil {
		_ = ready.Close()
		_ = cmd.Process.Kill()
		return run{}, nil, g.failure("QEMU ended at once", err)
	}
	return r, ready, nil
}

// descriptor leaves the file as it is, unlike its method Fd.
func descriptor(f *os.File) (fd uintptr) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = n })
	}
	return fd
}

// waitReady waits for the guest's word.
func (g guest) waitReady(ctx context.Context, ready *os.File) error {
	ctx, cancel := context.WithTimeoutCause(ctx, g.readyTimeout(),
		fmt.Errorf("the machine was not ready after %v", g.readyTimeout()))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(ready).ReadString('\n')
	switch {
	case err == nil && strings.HasPrefix(line, "ready kvm=yes"):
		return nil
	case err == nil:
		return api.Problemf(412, api.CodePrerequisite, "the machine runs but has no /dev/kvm, which Firecracker needs").
			WithHint("allow nested virtualisation on this host, or keep QEMU from using KVM: BANGER_MACHINE_ACCEL=tcg")
	case errors.Is(context.Cause(ctx), context.Canceled):
		return context.Canceled
	case ctx.Err() != nil:
		return g.failure("cannot start the machine", context.Cause(ctx))
	}
	return g.failure("cannot start the machine", errors.New("QEMU ended"))
}

// failure adds what QEMU and the guest's console said last.
func (g guest) failure(what string, err error) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %v", what, err)
	for _, name := range []string{"qemu.log", "console.log"} {
		if log, err := os.ReadFile(filepath.Join(g.dir, name)); err == nil && len(log) > 0 {
			fmt.Fprintf(&text, "\n  %s:\n%s", name, lastLines(log))
		}
	}
	return api.Internal("%s", text.String())
}

// freePort finds a port of the loopback that nobody listens on. Somebody may
// take it before QEMU does; QEMU then ends at once and says so.
func freePort() (int, error) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return 0, fmt.Errorf("cannot find a free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

// writeJSON writes v to path, whole or not at all.
func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	// On the disk before it has its name: a crash leaves the old or the new.
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

// shutDown asks the guest to power off and waits for QEMU's end; after the
// deadline QEMU is killed. The caller has the machine's lock.
func (g guest) shutDown(ctx context.Context, poweroff func(context.Context) *exec.Cmd) error {
	r, ok, err := readRun(g.dir)
	if err != nil || !ok {
		return err
	}
	pidfd, alive, err := r.process(g.dir)
	if err != nil || !alive {
		return errors.Join(err, killRun(g.dir))
	}
	defer unix.Close(pidfd)
	// The connection breaks as the guest goes down, so ssh's word is worth
	// nothing; QEMU's end is what counts.
	bounded, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	_ = poweroff(bounded).Run()
	err = waitEnd(bounded, pidfd)
	if ctx.Err() != nil {
		return context.Cause(ctx) // told to leave it alone: it may still go down
	}
	if kill := killRun(g.dir); kill != nil {
		return kill
	}
	if err != nil {
		return fmt.Errorf("the machine did not power off within %v and was ended by force", stopTimeout)
	}
	return nil
}

// stopTimeout is how long a guest may take to power off.
const stopTimeout = 90 * time.Second
