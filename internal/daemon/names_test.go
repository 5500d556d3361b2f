package daemon

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"banger/internal/installed"
	"banger/internal/store"
)

func TestGuestRules(t *testing.T) {
	now := time.Unix(0, 0)
	vms := []*store.VM{{Slot: 0, NAT: true}, {Slot: 3, Network: "team"}, {Slot: -1, NAT: true}}
	var err error
	reads := 0
	g := &guestRules{
		vms:    func(context.Context) ([]*store.VM, error) { reads++; return vms, err },
		record: installed.Record{Network: "172.16.0.1/16"},
		now:    func() time.Time { return now },
	}
	of := func(addr string) *store.VM { return g.of(t.Context(), netip.MustParseAddr(addr)) }
	if !of("172.16.0.2").NAT || of("172.16.0.5").Network != "team" || of("172.16.0.9").NAT || of("172.16.0.1").NAT {
		t.Error("addresses lead to the wrong VMs")
	}
	vms = nil
	if !of("172.16.0.2").NAT || reads != 1 {
		t.Errorf("the store was read %d times at once", reads)
	}
	now = now.Add(2 * rulesHold)
	if of("172.16.0.2").NAT {
		t.Error("a VM that is gone may still go out")
	}
	vms, err = []*store.VM{{Slot: 0, NAT: true}}, errors.New("broken")
	now = now.Add(2 * rulesHold)
	if of("172.16.0.2").NAT {
		t.Error("without the store a guest may go out")
	}
}
