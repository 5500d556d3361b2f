package vm

import (
	"context"

	"banger/internal/helper"
	"banger/internal/store"
)

// nat lets a guest reach what the host can, and the members of its named
// network. The helper keeps both in one policy per guest, which vm.cleanup
// takes away with the tap.
type nat struct {
	noHooks
	m *Manager
}

func (nat) name() string { return "nat" }

// preflight tells before the guest boots what the helper would refuse behind it.
func (n nat) preflight(_ context.Context, r *startRun) error {
	if !r.vm.NAT {
		return nil
	}
	return helper.CheckForwarding(n.m.ForwardSwitch)
}

func (n nat) postStart(ctx context.Context, v *store.VM) error {
	if !v.NAT && v.Network == "" {
		return nil // what a guest gets that nothing was said about
	}
	return n.apply(ctx, v)
}

func (n nat) applyChange(ctx context.Context, old, now *store.VM) ([]string, error) {
	if old.NAT == now.NAT && old.Network == now.Network {
		return nil, nil
	}
	return nil, n.apply(ctx, now)
}

func (n nat) apply(ctx context.Context, v *store.VM) error {
	return n.m.Helper.ApplyNetwork(ctx, helper.NetworkRequest{Guests: []helper.GuestNetwork{guestNetwork(v)}})
}

func guestNetwork(v *store.VM) helper.GuestNetwork {
	return helper.GuestNetwork{ID: v.ID, NAT: v.NAT, Group: v.Network}
}
