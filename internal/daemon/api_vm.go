package daemon

import (
	"context"
	"time"

	"banger/api"
	"banger/internal/store"
	"banger/internal/vm"
)

// stopTimeout is what a guest gets to shut down unless the caller says else.
const stopTimeout = 60 * time.Second

func (d *Daemon) listVMs(ctx context.Context, _ *struct{}) ([]api.VM, error) {
	vs, err := d.vms.List(ctx)
	all := make([]api.VM, len(vs))
	for i, v := range vs {
		all[i] = vmAPI(v)
	}
	return all, err
}

func (d *Daemon) getVM(ctx context.Context, in *RefInput) (api.VM, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return api.VM{}, err
	}
	return vmAPI(v), nil
}

func (d *Daemon) createVM(ctx context.Context, in *struct{ Body api.VMSpec }) (api.Operation, error) {
	v, err := d.vms.Create(ctx, in.Body)
	if err != nil {
		return api.Operation{}, err
	}
	return d.vmOperation(ctx, "vm.create", v, func(ctx context.Context, op *operation) error {
		if in.Body.NoStart {
			return nil
		}
		return d.vms.Start(ctx, v.ID, op)
	})
}

func (d *Daemon) startVM(ctx context.Context, in *RefInput) (api.Operation, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return api.Operation{}, err
	}
	return d.vmOperation(ctx, "vm.start", v, func(ctx context.Context, op *operation) error {
		return d.vms.Start(ctx, v.ID, op)
	})
}

func (d *Daemon) stopVM(ctx context.Context, in *struct {
	RefInput
	Timeout int `query:"timeout" minimum:"1" maximum:"3600" doc:"seconds until the guest is killed"`
}) (api.Operation, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return api.Operation{}, err
	}
	timeout := stopTimeout
	if in.Timeout > 0 {
		timeout = time.Duration(in.Timeout) * time.Second
	}
	return d.vmOperation(ctx, "vm.stop", v, func(ctx context.Context, op *operation) error {
		return d.vms.Stop(ctx, v.ID, timeout, op)
	})
}

func (d *Daemon) killVM(ctx context.Context, in *RefInput) (api.Operation, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return api.Operation{}, err
	}
	return d.vmOperation(ctx, "vm.kill", v, func(ctx context.Context, op *operation) error {
		return d.vms.Kill(ctx, v.ID, op)
	})
}

func (d *Daemon) deleteVM(ctx context.Context, in *struct {
	RefInput
	Force bool `query:"force" doc:"also when it is running"`
}) (api.Operation, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return api.Operation{}, err
	}
	return d.vmOperation(ctx, "vm.delete", v, func(ctx context.Context, op *operation) error {
		return d.vms.Delete(ctx, v.ID, in.Force, op)
	})
}

// vmOperation runs work on a VM as an operation, which at its end shows the VM.
func (d *Daemon) vmOperation(ctx context.Context, kind string, v *store.VM, work func(context.Context, *operation) error) (api.Operation, error) {
	op, err := d.ops.begin(ctx, kind, v.Name, false, func(ctx context.Context, op *operation) error {
		err := work(ctx, op)
		if now, getErr := d.vms.Get(context.WithoutCancel(ctx), v.ID); getErr == nil { // else it was deleted
			shown := vmAPI(now)
			op.setVM(&shown)
		}
		return err
	})
	if err != nil {
		return api.Operation{}, err
	}
	s, _ := op.snapshot()
	return s, nil
}

func vmAPI(v *store.VM) api.VM {
	return api.VM{ID: v.ID, Name: v.Name, State: v.State, Reason: v.Reason, Image: v.ImageName, Kernel: v.KernelName,
		VCPU: v.VCPU, MemoryMiB: v.MemoryMiB, Slot: v.Slot, Unit: vm.UnitOf(v.ID), CreatedAt: v.CreatedAt,
		StartedAt: v.StartedAt, Timing: v.Timing, Guest: v.Guest}
}
