package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"banger/api"
)

// many measures what depends on how many VMs there are: records, and running ones.
func (b *bench) many(ctx context.Context) (rows []row, err error) {
	const records, crowd = 200, 20
	list, err := b.list(ctx, "1 VM")
	if err != nil {
		return rows, err
	}
	rows = append(rows, list)
	// The first: while only benchVM runs, which runs beside the twentieth too.
	first, err := b.starts(ctx)
	if err != nil {
		return rows, err
	}
	if err := b.records(ctx, records); err != nil {
		return rows, err
	}
	list, err = b.list(ctx, fmt.Sprintf("%d stopped VMs", records))
	if err != nil {
		return rows, err
	}
	rows = append(rows, list)
	var running []api.VMSpec
	for i := range crowd - 1 {
		running = append(running, smallSpec(fmt.Sprintf("%s-crowd-%d", benchVM, i), false))
	}
	if err := each(running, func(spec api.VMSpec) error { return b.create(ctx, spec) }); err != nil {
		return rows, err
	}
	last, err := b.starts(ctx)
	if err != nil {
		return rows, err
	}
	rows = append(rows, row{What: fmt.Sprintf("start of running VM number %d (floor: number 1)", crowd), Unit: "ms",
		Value: median(last), Floor: median(first), Limit: 1.2})
	restart, err := b.restarts(ctx)
	if err != nil {
		return rows, err
	}
	rows = append(rows, row{What: fmt.Sprintf("restart of bangerd to first answer, %d records, %d running", records, crowd), Unit: "ms",
		Value: median(restart), Limit: 1500})
	err = each(running, func(spec api.VMSpec) error { return b.delete(ctx, spec.Name) })
	return rows, errors.Join(err, b.deleteRecords(ctx, records))
}

// stopped measures what many stopped VMs cost. To make and to delete them takes
// an emulated host a quarter of an hour.
func (b *bench) stopped(ctx context.Context) (rows []row, err error) {
	const most = 5000
	if err := b.records(ctx, most); err != nil {
		return rows, err
	}
	list, err := b.list(ctx, fmt.Sprintf("%d stopped VMs", most))
	return []row{list}, errors.Join(err, b.deleteRecords(ctx, most))
}

func (b *bench) list(ctx context.Context, with string) (row, error) {
	ds, err := b.repeat(ctx, "vm", "list")
	if err != nil {
		return row{}, err
	}
	return row{What: "vm list with " + with + ", whole command", Unit: "ms", Value: median(ds)}, nil
}

func (b *bench) deleteRecords(ctx context.Context, n int) error {
	var all []string
	for i := range n {
		all = append(all, recordName(i))
	}
	return each(all, func(name string) error { return b.delete(ctx, name) })
}

func recordName(i int) string { return fmt.Sprintf("%s-record-%d", benchVM, i) }

func smallSpec(name string, noStart bool) api.VMSpec {
	vcpu, memory := 1, 128
	return api.VMSpec{Name: name, Image: smallImage, VCPU: &vcpu, MemoryMiB: &memory, NoStart: noStart}
}

func (b *bench) create(ctx context.Context, spec api.VMSpec) error {
	op, err := b.api.CreateVM(ctx, spec)
	return b.await(ctx, op, err)
}

// records makes VMs that never start.
func (b *bench) records(ctx context.Context, n int) error {
	var specs []api.VMSpec
	for i := range n {
		specs = append(specs, smallSpec(recordName(i), true))
	}
	return each(specs, func(spec api.VMSpec) error { return b.create(ctx, spec) })
}

// starts measures starts of a small VM, without a command around them: what that
// adds does not depend on how many there are.
func (b *bench) starts(ctx context.Context) (ds []time.Duration, err error) {
	const name = benchVM + "-start"
	if err := b.create(ctx, smallSpec(name, true)); err != nil {
		return nil, err
	}
	for range b.runs {
		begun := time.Now()
		op, err := b.api.StartVM(ctx, name, false)
		if err := b.await(ctx, op, err); err != nil {
			return nil, err
		}
		ds = append(ds, time.Since(begun))
		op, err = b.api.KillVM(ctx, name)
		if err := b.await(ctx, op, err); err != nil {
			return nil, err
		}
	}
	return ds, b.delete(ctx, name)
}

// repeat runs a command of banger.
func (b *bench) repeat(ctx context.Context, args ...string) (ds []time.Duration, err error) {
	for range b.runs {
		d, err := b.timed(ctx, args...)
		if err != nil {
			return nil, err
		}
		ds = append(ds, d)
	}
	return ds, nil
}

// restarts measures how long bangerd does not answer when it is restarted.
func (b *bench) restarts(ctx context.Context) (ds []time.Duration, err error) {
	for range b.runs {
		// It counts how often a service is started, and ends that at some point.
		if err := run(ctx, "systemctl", "reset-failed", "bangerd.service"); err != nil {
			return nil, err
		}
		begun := time.Now()
		if out, err := exec.CommandContext(ctx, "systemctl", "restart", "bangerd.service").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("cannot restart bangerd: %w: %s", err, out)
		}
		// Its socket is systemd's and was there all the time: the question waits.
		if _, err := b.api.VMs(ctx); err != nil {
			return nil, err
		}
		ds = append(ds, time.Since(begun))
	}
	return ds, nil
}
