package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"banger/internal/guest"
)

// life compares start, stop and delete of a small VM with the same done by hand.
// A command's own start-up, which is measured beside it, is taken off.
func (b *bench) life(ctx context.Context) ([]row, error) {
	const name = benchVM + "-life"
	size := []string{"--image", smallImage, "--vcpu", "1", "--memory", "128"}
	if _, err := b.banger(ctx, append([]string{"vm", "create", "--no-start", "--name", name}, size...)...); err != nil {
		return nil, err
	}
	var cli, start, stop, del, ready, down, kill []time.Duration
	for range b.runs {
		d, err := b.timed(ctx, "version", "--client")
		if err != nil {
			return nil, err
		}
		cli = append(cli, d)
		t, shutdown, killed, err := b.floorLife(ctx)
		if err != nil {
			return nil, fmt.Errorf("floor: %w", err)
		}
		ready, down, kill = append(ready, t), append(down, shutdown), append(kill, killed)
		for _, c := range []struct {
			times *[]time.Duration
			args  []string
		}{{&start, []string{"start"}}, {&stop, []string{"stop"}}, {nil, []string{"start"}}, {&del, []string{"delete", "--force"}}} {
			d, err := b.timed(ctx, append(append([]string{"vm"}, c.args...), name)...)
			if err != nil {
				return nil, err
			}
			if c.times != nil {
				*c.times = append(*c.times, d)
			}
		}
		if _, err := b.banger(ctx, append([]string{"vm", "create", "--no-start", "--name", name}, size...)...); err != nil {
			return nil, err
		}
	}
	up := median(cli)
	return []row{
		{What: "vm start to agent ready, small image, without CLI start-up", Unit: "ms", Value: median(start) - up, Floor: median(ready), Limit: 1.25},
		{What: "vm stop of an idle VM, without CLI start-up", Unit: "ms", Value: median(stop) - up, Floor: median(down)},
		{What: "  beyond the guest's own shutdown", Unit: "ms", Value: median(stop) - up - median(down), Limit: 200},
		{What: "vm delete of a running VM, without CLI start-up", Unit: "ms", Value: median(del) - up, Floor: median(kill), Limit: 3},
	}, b.delete(ctx, name)
}

// floorLife starts a VM by hand and lets the guest shut itself down; then starts
// another and kills it.
func (b *bench) floorLife(ctx context.Context) (ready, shutdown, kill time.Duration, err error) {
	vm, t, err := b.small.start(ctx)
	if err != nil {
		return 0, 0, 0, errors.Join(err, vm.stop())
	}
	// A guest that ends waits a moment for somebody to hear of it.
	listener, agent := guest.NewClient(vm.dial), guest.NewClient(vm.dial)
	defer listener.Close()
	defer agent.Close()
	go func() { _, _ = listener.End(ctx) }()
	if _, err := agent.Health(ctx); err != nil { // the listener is there by now
		return 0, 0, 0, errors.Join(err, vm.stop())
	}
	begun := time.Now()
	if _, err := agent.Shutdown(ctx, guest.Shutdown{GraceSeconds: 5}); err != nil {
		return 0, 0, 0, errors.Join(err, vm.stop())
	}
	if err := vm.cmd.Wait(); err != nil {
		return 0, 0, 0, err
	}
	shutdown = time.Since(begun)
	if err := vm.remove(); err != nil {
		return 0, 0, 0, err
	}
	other, _, err := b.small.start(ctx)
	if err != nil {
		return 0, 0, 0, errors.Join(err, other.stop())
	}
	begun = time.Now()
	if err := other.cmd.Process.Kill(); err != nil {
		return 0, 0, 0, err
	}
	_ = other.cmd.Wait() // "signal: killed" is what was asked for
	kill = time.Since(begun)
	return t.ready, shutdown, kill, other.remove()
}
