package daemon

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"banger/internal/dns"
	"banger/internal/installed"
	"banger/internal/store"
)

// Zone is the domain of the VMs' names.
const Zone = "vm"

// hostResolvers is what guests that are let out are answered from.
const hostResolvers = "/etc/resolv.conf"

// ServeNames answers questions for names on the sockets of banger-dns.socket
// until ctx ends.
func (d *Daemon) ServeNames(ctx context.Context, packets []net.PacketConn, listeners []net.Listener) error {
	network, err := netip.ParsePrefix(d.record.Network)
	if err != nil {
		return err
	}
	rules := &guestRules{vms: d.store.ActiveVMs, record: d.record, now: time.Now}
	s := &dns.Server{
		Table: &d.names, Zone: Zone, Network: network, Bridge: d.record.Bridge, Log: d.log,
		MayForward: func(client netip.Addr) bool { return rules.of(ctx, client).NAT },
		MayResolve: func(client, target netip.Addr) bool {
			group := rules.of(ctx, client).Network
			return group != "" && group == rules.of(ctx, target).Network
		},
		Upstreams: func() ([]netip.AddrPort, error) { return dns.HostResolvers(hostResolvers) },
	}
	return s.Serve(ctx, packets, listeners)
}

// rulesHold bounds how long a change of a VM's policy takes to reach its
// questions, and how often guests can make the store work.
const rulesHold = time.Second

// guestRules finds the VM behind an address.
type guestRules struct {
	vms    func(context.Context) ([]*store.VM, error)
	record installed.Record
	now    func() time.Time

	mu     sync.Mutex
	read   time.Time                // guarded by mu
	byAddr map[netip.Addr]*store.VM // guarded by mu
}

// of returns a VM that may nothing for an address that no running one has, and
// for all when the store cannot be read.
func (g *guestRules) of(ctx context.Context, addr netip.Addr) *store.VM {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := g.now(); g.byAddr == nil || now.Sub(g.read) > rulesHold {
		g.read, g.byAddr = now, map[netip.Addr]*store.VM{}
		vms, err := g.vms(ctx)
		if err != nil {
			vms = nil
		}
		for _, v := range vms {
			if p, ok := g.record.GuestAddress(v.Slot); ok {
				g.byAddr[p.Addr()] = v
			}
		}
	}
	if v, ok := g.byAddr[addr]; ok {
		return v
	}
	return &store.VM{}
}
