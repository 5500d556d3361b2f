package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/api"
	"banger/client"
	"banger/internal/installed"
	"banger/internal/paths"
)

// Names of what the bench makes: benchVM, and all that begin with it and a hyphen.
const (
	benchVM    = "bench"
	smallVM    = benchVM + "-small"
	smallImage = benchVM + "-small"
)

// part is a group of figures that is measured together. The floor is over the
// default image, the small floor over the small one.
type part struct {
	name string
	run  func(*bench, context.Context) ([]row, error)
	// asked: takes so long that it runs only by name.
	asked bool
}

var parts = []part{
	{name: "spawn", run: (*bench).spawn},
	{name: "exec", run: (*bench).exec},
	{name: "jail", run: (*bench).jail},
	{name: "life", run: (*bench).life},
	{name: "many", run: (*bench).many},
	{name: "network", run: (*bench).network},
	{name: "import", run: (*bench).imports},
	{name: "memory", run: (*bench).memory},
	{name: "size", run: (*bench).sizes},
	{name: "records", run: (*bench).stopped},
	{name: "growth", run: (*bench).growth, asked: true},
}

// measure runs the parts named, or all that need not be asked for. What it makes
// it also removes.
func measure(ctx context.Context, runs int, only []string) (rows []row, err error) {
	for _, name := range only {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return nil, fmt.Errorf("there is no part %q", name)
		}
	}
	record, err := installed.Load(paths.InstallFile)
	if err != nil {
		return nil, err
	}
	b := &bench{record: record, runs: runs}
	if b.api, err = client.New(""); err != nil {
		return nil, err
	}
	defer b.api.Close()
	defer func() { err = errors.Join(err, b.clear(context.WithoutCancel(ctx))) }()
	if err := b.clear(ctx); err != nil { // of a run that was killed
		return nil, err
	}
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	for _, p := range parts {
		if len(only) > 0 && !slices.Contains(only, p.name) || len(only) == 0 && p.asked {
			continue
		}
		begun := time.Now()
		r, err := p.run(b, ctx)
		rows = append(rows, r...)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Fprintf(os.Stderr, "bench: %s took %.0f s\n", p.name, time.Since(begun).Seconds())
	}
	return rows, nil
}

type bench struct {
	record installed.Record
	runs   int
	api    *client.Client
	floor  *floor // with the kernel, image and size of benchVM
	small  *floor // with the small image
}

// prepare starts benchVM and makes both floors of what it is made of.
func (b *bench) prepare(ctx context.Context) error {
	if _, err := b.banger(ctx, "vm", "run", "-d", "--name", benchVM, "--vcpu", "1", "--memory", "256"); err != nil {
		return err
	}
	vm, err := b.api.VM(ctx, benchVM)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "bench: %d CPUs, guests run kernel %q\n", runtime.NumCPU(), vm.Kernel)
	if b.floor, err = b.newFloor(ctx, vm, "floor"); err != nil {
		return err
	}
	if err := b.importSmall(ctx); err != nil {
		return err
	}
	// A VM's disk tells where its image lies.
	if _, err := b.banger(ctx, "vm", "run", "-d", "--name", smallVM, "--image", smallImage, "--vcpu", "1", "--memory", "128"); err != nil {
		return err
	}
	if vm, err = b.api.VM(ctx, smallVM); err != nil {
		return err
	}
	b.small, err = b.newFloor(ctx, vm, "small")
	return errors.Join(err, b.delete(ctx, smallVM))
}

// clear removes whatever this program makes.
func (b *bench) clear(ctx context.Context) error {
	var errs []error
	for _, f := range []*floor{b.floor, b.small} {
		if f != nil {
			errs = append(errs, f.close(ctx))
		}
	}
	vms, err := b.api.VMs(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, each(vms, func(vm api.VM) error {
		if vm.Name != benchVM && !strings.HasPrefix(vm.Name, benchVM+"-") {
			return nil
		}
		return b.delete(ctx, vm.Name)
	}))
	images, err := b.api.Images(ctx)
	if err == nil && slices.ContainsFunc(images, func(i api.Image) bool { return i.Name == smallImage }) {
		err = b.api.DeleteImage(ctx, smallImage)
	}
	return errors.Join(append(errs, err)...)
}

// delete removes a VM, running or not.
func (b *bench) delete(ctx context.Context, name string) error {
	op, err := b.api.DeleteVM(ctx, name, true)
	return b.await(ctx, op, err)
}

// await waits for an operation that was begun with err.
func (b *bench) await(ctx context.Context, op api.Operation, err error) error {
	if err != nil {
		return err
	}
	op, err = b.api.Watch(ctx, op.ID, func(api.Operation) {})
	if err == nil && op.Error != nil {
		err = op.Error
	}
	return err
}

// each does f for all, four at a time, and joins the errors.
func each[T any](all []T, f func(T) error) error {
	const atOnce = 4
	var wg sync.WaitGroup
	errs := make([]error, len(all))
	room := make(chan struct{}, atOnce)
	for i, one := range all {
		room <- struct{}{}
		wg.Go(func() {
			errs[i] = f(one)
			<-room
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

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

// spawn compares `vm run --rm -- echo` with the floor's spawn to first output.
func (b *bench) spawn(ctx context.Context) ([]row, error) {
	f := b.floor
	var run, out, boot, ready, kill []time.Duration
	for range b.runs {
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
// by hand over a new connection is shown apart. It costs several of those round
// trips in an emulated host, and not for waiting: a process that is made in the
// guest, loads its libraries and ends, is hundreds of page faults, each of which
// is emulated twice.
func (b *bench) exec(ctx context.Context) ([]row, error) {
	vm, _, err := b.floor.start(ctx)
	defer func() { _ = vm.stop() }()
	if err != nil {
		return nil, err
	}
	// A guest that is still starting its services is slow at all else.
	settle := []string{"sh", "-c", `for i in $(seq 120); do
		case $(timeout 60 systemctl is-system-running --wait 2>/dev/null) in running|degraded) exit 0; esac
		sleep 1 # until systemd answers, --wait does not wait
	done; exit 1`}
	if _, err := vm.run(ctx, settle...); err != nil {
		return nil, err
	}
	if _, err := b.banger(ctx, append([]string{"vm", "exec", benchVM, "--"}, settle...)...); err != nil {
		return nil, err
	}
	var whole, start, trip, direct []time.Duration
	for range 3 * b.runs {
		begun := time.Now()
		if err := vm.roundTrip(ctx); err != nil {
			return nil, err
		}
		trip = append(trip, time.Since(begun))
		begun = time.Now()
		if _, err := vm.run(ctx, "true"); err != nil {
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
		{What: "  of the floor: the same command over a new connection", Unit: "ms", Value: median(direct)},
	}, nil
}
