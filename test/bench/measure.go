package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/identity"
	"banger/internal/installed"
	"banger/internal/paths"
)

const benchVM = "bench"

// measure runs everything. What it makes it also removes.
func measure(ctx context.Context, runs, churn int) (rows []row, err error) {
	record, err := installed.Load(paths.InstallFile)
	if err != nil {
		return nil, err
	}
	b := &bench{record: record}
	defer func() {
		_, delErr := b.banger(context.WithoutCancel(ctx), "vm", "delete", "--force", benchVM)
		if err == nil {
			err = delErr
		}
	}()
	if _, err := b.banger(ctx, "vm", "run", "-d", "--name", benchVM, "--vcpu", "1", "--memory", "256"); err != nil {
		return nil, err
	}
	f, done, err := b.floor(ctx)
	defer done()
	if err != nil {
		return nil, err
	}
	for _, part := range []func(context.Context, *floor, int) ([]row, error){b.spawn, b.exec, b.imports, b.memory(churn)} {
		r, err := part(ctx, f, runs)
		rows = append(rows, r...)
		if err != nil {
			return rows, err
		}
	}
	sizes, err := b.sizes()
	return append(rows, sizes...), err
}

type bench struct{ record installed.Record }

// banger runs the CLI as the owner and returns its stdout.
func (b *bench) banger(ctx context.Context, args ...string) (string, error) {
	c := exec.CommandContext(ctx, filepath.Join(paths.BinDir, "banger"), args...)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(b.record.UID), Gid: uint32(b.record.GID)}}
	c.Env = []string{"HOME=/tmp", "PATH=/usr/local/bin:/usr/bin:/bin"}
	c.Dir = "/"
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("banger %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func (b *bench) timed(ctx context.Context, args ...string) (time.Duration, error) {
	begun := time.Now()
	_, err := b.banger(ctx, args...)
	return time.Since(begun), err
}

// floor takes kernel, initrd and image from the bench VM's jail and makes a
// disk of its own over the same image.
func (b *bench) floor(ctx context.Context) (f *floor, done func(), err error) {
	done = func() {}
	shown, err := b.banger(ctx, "vm", "show", "--json", benchVM)
	if err != nil {
		return nil, done, err
	}
	var vm api.VM
	if err := json.Unmarshal([]byte(shown), &vm); err != nil {
		return nil, done, err
	}
	jail := filepath.Join(paths.JailDir, vm.ID, "root")
	dir := filepath.Join(paths.HelperDir, "bench-floor")
	f = &floor{record: b.record, dir: dir, kernel: filepath.Join(jail, "vmlinux"), initrd: filepath.Join(jail, "initrd"), vcpu: 1, memory: 256,
		bootArgs: "console=ttyS0 quiet loglevel=3 reboot=k panic=1 i8042.noaux i8042.nomux i8042.dumbkbd"}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, done, err
	}
	done = func() { _ = os.RemoveAll(dir) }
	if f.authority, err = identity.Open(filepath.Join(dir, "identity")); err != nil {
		return nil, done, err
	}
	detach, err := f.attach(ctx, vm.ID)
	return f, func() { detach(); _ = os.RemoveAll(dir) }, err
}

// attach makes the floor's disk: the bench VM's image under a snapshot.
func (f *floor) attach(ctx context.Context, id string) (detach func(), err error) {
	var undo [][]string
	detach = func() {
		for _, argv := range slices.Backward(undo) {
			if out, err := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...).CombinedOutput(); err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err, string(out))
			}
		}
	}
	run := func(argv ...string) (string, error) {
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%v: %w: %s", argv, err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	base, err := baseOf(id)
	if err != nil {
		return detach, err
	}
	cow := filepath.Join(f.dir, "overlay.cow")
	if err := errors.Join(os.WriteFile(cow, nil, 0o600), os.Truncate(cow, 34<<30)); err != nil {
		return detach, err
	}
	var loops []string
	for _, args := range [][]string{{"-r", base}, {cow}} {
		loop, err := run(append([]string{"losetup", "--show", "-f"}, args...)...)
		if err != nil {
			return detach, err
		}
		undo, loops = append(undo, []string{"losetup", "-d", loop}), append(loops, loop)
	}
	sectors, err := run("blockdev", "--getsz", loops[0])
	if err != nil {
		return detach, err
	}
	if _, err := run("dmsetup", "create", "bench-floor", "--table", "0 "+sectors+" snapshot "+loops[0]+" "+loops[1]+" P 8"); err != nil {
		return detach, err
	}
	undo = append(undo, []string{"dmsetup", "remove", "--retry", "bench-floor"})
	var st unix.Stat_t
	if err := unix.Stat("/dev/mapper/bench-floor", &st); err != nil {
		return detach, err
	}
	f.disk = st.Rdev
	return detach, nil
}

// baseOf finds the image file under a VM's root disk.
func baseOf(id string) (string, error) {
	loops, err := filepath.Glob("/sys/class/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, l := range loops {
		raw, err := os.ReadFile(l)
		if file := strings.TrimSpace(string(raw)); err == nil && strings.HasSuffix(file, "rootfs.ext4") {
			return file, nil
		}
	}
	return "", fmt.Errorf("cannot find the image under VM %s", id)
}

// spawn compares `vm run --rm -- echo` with the floor's spawn to first output.
func (b *bench) spawn(ctx context.Context, f *floor, runs int) ([]row, error) {
	var run, out, boot, ready, kill []time.Duration
	for range runs {
		vm, t, err := f.start(ctx)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("floor: %w", err), vm.stop())
		}
		killed := time.Now()
		if err := vm.stop(); err != nil {
			return nil, err
		}
		out, boot, ready, kill = append(out, t.output), append(boot, t.started-t.configured), append(ready, t.ready), append(kill, time.Since(killed))
		d, err := b.timed(ctx, "vm", "run", "--rm", "--vcpu", "1", "--memory", "256", "--", "echo", "hello")
		if err != nil {
			return nil, err
		}
		run = append(run, d)
	}
	return []row{
		{What: "vm run --rm -- echo, whole command", Unit: "ms", Value: median(run), Floor: median(out), Limit: 1.5},
		{What: "  of the floor: InstanceStart call", Unit: "ms", Value: median(boot)},
		{What: "  of the floor: spawn to agent ready", Unit: "ms", Value: median(ready)},
		{What: "  of the floor: kill, wait, remove", Unit: "ms", Value: median(kill)},
	}, nil
}

// exec compares a command on a running VM with the least a question to a guest
// can cost: a new vsock connection and one answer of the agent. The same command
// by hand over a new connection is shown apart.
func (b *bench) exec(ctx context.Context, f *floor, runs int) ([]row, error) {
	vm, _, err := f.start(ctx)
	defer func() { _ = vm.stop() }()
	if err != nil {
		return nil, err
	}
	// A guest that is still starting its services is slow at all else.
	settle := []string{"sh", "-c", "systemctl is-system-running --wait; true"}
	if err := vm.run(ctx, settle...); err != nil {
		return nil, err
	}
	if _, err := b.banger(ctx, append([]string{"vm", "exec", benchVM, "--"}, settle...)...); err != nil {
		return nil, err
	}
	var whole, start, trip, direct []time.Duration
	for range 3 * runs {
		begun := time.Now()
		if err := vm.roundTrip(ctx); err != nil {
			return nil, err
		}
		trip = append(trip, time.Since(begun))
		begun = time.Now()
		if err := vm.run(ctx, "echo", "hello"); err != nil {
			return nil, err
		}
		direct = append(direct, time.Since(begun))
		d, err := b.timed(ctx, "version", "--client")
		if err != nil {
			return nil, err
		}
		start = append(start, d)
		if d, err = b.timed(ctx, "vm", "exec", benchVM, "--", "true"); err != nil {
			return nil, err
		}
		whole = append(whole, d)
	}
	return []row{
		{What: "CLI start-up (banger version --client)", Unit: "ms", Value: median(start)},
		{What: "vm exec -- true, whole command", Unit: "ms", Value: median(whole)},
		{What: "vm exec -- true, without CLI start-up", Unit: "ms", Value: median(whole) - median(start), Floor: median(trip), Limit: 3},
		{What: "  of the floor: a command over a new connection", Unit: "ms", Value: median(direct)},
	}, nil
}

// memory reads what the services hold after VMs came and went.
func (b *bench) memory(churn int) func(context.Context, *floor, int) ([]row, error) {
	return func(ctx context.Context, _ *floor, _ int) ([]row, error) {
		for range churn {
			if _, err := b.banger(ctx, "vm", "run", "--rm", "--vcpu", "1", "--memory", "256", "--", "true"); err != nil {
				return nil, err
			}
		}
		daemon, err := resident(ctx, "bangerd.service")
		if err != nil {
			return nil, err
		}
		helper, err := resident(ctx, "banger-helper.service")
		return []row{
			{What: fmt.Sprintf("bangerd resident after %d more VMs", churn), Unit: "MiB", Value: daemon, Limit: 40},
			{What: fmt.Sprintf("banger-helper resident after %d more VMs", churn), Unit: "MiB", Value: helper, Limit: 15},
		}, err
	}
}

// resident is VmRSS of a service's main process in MiB.
func resident(ctx context.Context, unit string) (float64, error) {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=MainPID", "--value", unit).Output()
	if err != nil {
		return 0, err
	}
	raw, err := os.ReadFile("/proc/" + strings.TrimSpace(string(out)) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			return float64(kib) / 1024, err
		}
	}
	return 0, fmt.Errorf("cannot read the memory of %s", unit)
}

func (b *bench) sizes() ([]row, error) {
	st, err := os.Stat(filepath.Join(paths.LibexecDir, "banger-agent"))
	if err != nil {
		return nil, err
	}
	return []row{{What: "agent, unpacked", Unit: "MiB", Value: float64(st.Size()) / (1 << 20), Limit: 8}}, nil
}
