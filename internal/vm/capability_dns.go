package vm

import (
	"context"
	"net/netip"

	"banger/internal/store"
)

// Names is where the names of running VMs are served.
type Names interface {
	Set(name string, addr netip.Addr)
	Delete(name string)
}

// dnsName keeps NAME.vm pointing at a VM while it runs.
type dnsName struct {
	noHooks
	m *Manager
}

func (dnsName) name() string { return "dns" }

func (d dnsName) contribute(_ *startRun, m *machine) error {
	if n := m.guest.Network; n != nil {
		n.DNS, n.Search = []string{n.Gateway}, []string{d.m.Zone}
	}
	return nil
}

func (d dnsName) postStart(_ context.Context, v *store.VM) error {
	if addr, ok := d.m.Record.GuestAddress(v.Slot); ok {
		d.m.Names.Set(v.Name, addr.Addr())
	}
	return nil
}

func (d dnsName) cleanup(_ context.Context, v *store.VM) error {
	d.m.Names.Delete(v.Name)
	return nil
}

func (d dnsName) applyChange(ctx context.Context, old, now *store.VM) ([]string, error) {
	if old.Name == now.Name {
		return nil, nil
	}
	d.m.Names.Delete(old.Name)
	return []string{"name"}, d.postStart(ctx, now) // the guest's own idea of it changes with its next start
}
