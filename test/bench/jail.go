package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"banger/api"
)

// jail compares Firecracker in banger's unit and jail with Firecracker started by
// root without either, and with the jailer by hand: from its spawn until the agent is
// ready, and what its cgroup then holds that is not the page cache.
func (b *bench) jail(ctx context.Context) (rows []row, err error) {
	const name, cgroup = benchVM + "-jail", "/sys/fs/cgroup/banger-bench"
	if err := os.Mkdir(cgroup, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(cgroup)) }()
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	jailed, bare := *b.small, *b.small
	jailed.cgroup, bare.cgroup, bare.bare = dir, dir, true
	if err := b.create(ctx, smallSpec(name, true)); err != nil {
		return nil, err
	}
	var times, memory [3][]time.Duration // of memory the bytes
	note := func(i int, d time.Duration, cgroup string) error {
		bytes, err := held(cgroup)
		times[i], memory[i] = append(times[i], d), append(memory[i], time.Duration(bytes))
		return err
	}
	for range b.runs {
		for i, f := range []*floor{&bare, &jailed} {
			vm, t, err := f.start(ctx)
			if err == nil {
				err = note(i, t.ready, cgroup)
			}
			if err := errors.Join(err, vm.stop()); err != nil {
				return nil, fmt.Errorf("floor: %w", err)
			}
		}
		op, err := b.api.StartVM(ctx, name, false)
		if err := b.await(ctx, op, err); err != nil {
			return nil, err
		}
		vm, err := b.api.VM(ctx, name)
		if err == nil {
			err = note(2, launchToReady(vm), filepath.Join("/sys/fs/cgroup/banger.slice", vm.Unit))
		}
		if err != nil {
			return nil, err
		}
		op, err = b.api.KillVM(ctx, name)
		if err := b.await(ctx, op, err); err != nil {
			return nil, err
		}
	}
	mib := func(i int) float64 { return median(memory[i]) * 1e6 / (1 << 20) }
	return []row{
		{What: "unit and jail: launch to agent ready (floor: no jail)", Unit: "ms", Value: median(times[2]), Floor: median(times[0])},
		{What: "  the jailer by hand", Unit: "ms", Value: median(times[1]), Floor: median(times[0])},
		{What: "  memory of the unit (floor: no jail)", Unit: "MiB", Value: mib(2), Floor: mib(0)},
		{What: "  memory with the jailer by hand", Unit: "MiB", Value: mib(1), Floor: mib(0)},
	}, b.delete(ctx, name)
}

// launchToReady is what of a start is about the VMM and its guest.
func launchToReady(vm api.VM) (d time.Duration) {
	for _, t := range vm.Timing {
		switch t.Phase {
		case "firecracker_launch", "socket_access", "vsock_access", "wait_vsock_agent":
			d += time.Duration(t.Milliseconds * float64(time.Millisecond))
		}
	}
	return d
}

// held is the memory of a cgroup that no other would keep for it: of its processes,
// and of the kernel for them.
func held(cgroup string) (bytes int, err error) {
	raw, err := os.ReadFile(filepath.Join(cgroup, "memory.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if key == "anon" || key == "kernel" {
			n, err := strconv.Atoi(value)
			if err != nil {
				return 0, err
			}
			bytes += n
		}
	}
	return bytes, nil
}
