package daemon

import (
	"context"
	"slices"
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
		all[i] = d.vmAPI(v)
	}
	return all, err
}

func (d *Daemon) getVM(ctx context.Context, in *RefInput) (api.VM, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return api.VM{}, err
	}
	out := d.vmAPI(v)
	if out.Timing, err = v.Phases(); err != nil {
		return api.VM{}, err
	}
	return out, nil
}

func (d *Daemon) createVM(ctx context.Context, in *struct{ Body api.VMSpec }) (api.Operation, error) {
	v, err := d.vms.Create(ctx, in.Body)
	if err != nil {
		return api.Operation{}, err
	}
	if v.Ephemeral {
		d.leases.expect(v.ID, leaseStart)
	}
	return d.vmOperation(ctx, "vm.create", v, func(ctx context.Context, op *operation) error {
		if in.Body.NoStart {
			return nil
		}
		return d.vms.Start(ctx, v.ID, false, op)
	})
}

// StartInput is exported for huma, like RefInput.
type StartInput struct {
	RefInput
	Repair bool `query:"repair" doc:"mend disks even if that loses files"`
}

func (d *Daemon) startVM(ctx context.Context, in *StartInput) (api.Operation, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return api.Operation{}, err
	}
	return d.vmOperation(ctx, "vm.start", v, func(ctx context.Context, op *operation) error {
		return d.vms.Start(ctx, v.ID, in.Repair, op)
	})
}

// StopInput is exported for huma, like RefInput.
type StopInput struct {
	RefInput
	Timeout int `query:"timeout" minimum:"1" maximum:"3600" doc:"seconds until the guest is killed"`
}

func (in *StopInput) wait() time.Duration {
	if in.Timeout > 0 {
		return time.Duration(in.Timeout) * time.Second
	}
	return stopTimeout
}

func (d *Daemon) stopVM(ctx context.Context, in *StopInput) (api.Operation, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return api.Operation{}, err
	}
	return d.vmOperation(ctx, "vm.stop", v, func(ctx context.Context, op *operation) error {
		return d.vms.Stop(ctx, v.ID, in.wait(), op)
	})
}

func (d *Daemon) restartVM(ctx context.Context, in *StopInput) (api.Operation, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return api.Operation{}, err
	}
	return d.vmOperation(ctx, "vm.restart", v, func(ctx context.Context, op *operation) error {
		return d.vms.Restart(ctx, v.ID, in.wait(), op)
	})
}

func (d *Daemon) pauseVM(ctx context.Context, in *RefInput) (api.Operation, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return api.Operation{}, err
	}
	return d.vmOperation(ctx, "vm.pause", v, func(ctx context.Context, op *operation) error {
		return d.vms.Pause(ctx, v.ID, "", op)
	})
}

func (d *Daemon) resumeVM(ctx context.Context, in *RefInput) (api.Operation, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err != nil {
		return api.Operation{}, err
	}
	return d.vmOperation(ctx, "vm.resume", v, func(ctx context.Context, op *operation) error {
		return d.vms.Resume(ctx, v.ID, op)
	})
}

func (d *Daemon) changeVM(ctx context.Context, in *struct {
	RefInput
	Body api.VMChange
}) (api.VM, error) {
	v, err := d.vms.Get(ctx, in.Ref)
	if err == nil {
		v, err = d.vms.Change(ctx, v.ID, in.Body)
	}
	if err != nil {
		return api.VM{}, err
	}
	return d.vmAPI(v), nil
}

// pruneVMs begins an operation for each VM it deletes.
func (d *Daemon) pruneVMs(ctx context.Context, in *struct{ Body api.PruneRequest }) (api.Pruned, error) {
	before := time.Now().Add(-time.Duration(in.Body.OlderThanSeconds) * time.Second)
	old, err := d.vms.Prunable(ctx, before)
	out := api.Pruned{VMs: []api.VM{}}
	if err != nil {
		return out, err
	}
	for _, v := range old {
		if in.Body.Only != nil && !slices.Contains(in.Body.Only, v.ID) {
			continue
		}
		out.VMs = append(out.VMs, d.vmAPI(v))
		if in.Body.DryRun {
			continue
		}
		op, err := d.vmOperation(ctx, "vm.prune", v, func(ctx context.Context, op *operation) error {
			return d.vms.Prune(ctx, v.ID, before, op)
		})
		if err != nil {
			return out, err
		}
		out.Operations = append(out.Operations, op)
	}
	return out, nil
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

// vmOperation runs work on a VM as an operation, which shows the VM.
func (d *Daemon) vmOperation(ctx context.Context, kind string, v *store.VM, work func(context.Context, *operation) error) (api.Operation, error) {
	first := d.vmAPI(v)
	op, err := d.ops.beginOn(ctx, kind, v.Name, &first, false, func(ctx context.Context, op *operation) error {
		err := work(ctx, op)
		if now, getErr := d.vms.Get(context.WithoutCancel(ctx), v.ID); getErr == nil { // else it was deleted
			shown := d.vmAPI(now)
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

func (d *Daemon) vmAPI(v *store.VM) api.VM {
	out := api.VM{ID: v.ID, Name: v.Name, State: v.State, Reason: v.Reason, Image: v.ImageName, Kernel: v.KernelName,
		VCPU: v.VCPU, MemoryMiB: v.MemoryMiB, DiskBytes: v.DiskBytes, Slot: v.Slot, Unit: vm.UnitOf(v.ID),
		NAT: v.NAT, Network: v.Network, Autostart: v.Autostart, Restart: v.Restart, IdleStopSeconds: v.IdleStop,
		CPUWeight: v.CPUWeight, IOWeight: v.IOWeight, CPULimitMillis: v.CPULimit, IOLimitBytes: v.IOLimit,
		Ephemeral: v.Ephemeral, Stale: v.Stale, CreatedAt: v.CreatedAt, StartedAt: v.StartedAt, Guest: v.Guest}
	if addr, ok := d.record.GuestAddress(v.Slot); ok {
		out.Address = addr.Addr().String()
	}
	return out
}
