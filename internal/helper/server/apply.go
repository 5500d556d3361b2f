package server

import (
	"context"
	"maps"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/paths"
)

const maxGuests = 4096 // of one request

// checkGuests looks at everything a caller said before anything is done.
func checkGuests(r helper.NetworkRequest) error {
	if len(r.Guests) > maxGuests {
		return api.BadRequest("%d guests are more than %d", len(r.Guests), maxGuests)
	}
	seen := map[string]bool{}
	nat := false
	for _, g := range r.Guests {
		switch err := checkID(g.ID); {
		case err != nil:
			return err
		case seen[g.ID]:
			return api.BadRequest("VM %s is there twice", g.ID)
		case g.Group != "" && !isGroup(g.Group):
			return api.BadRequest("network %.80q is not 1 to 63 of a-z, 0-9 and hyphens between them", g.Group)
		}
		seen[g.ID] = true
		nat = nat || g.NAT
	}
	if nat && !r.Whole { // those run already, and the others' policies must not wait for them
		return helper.CheckForwarding(paths.ForwardSwitch)
	}
	return nil
}

// guestPorts gives each guest the address that follows from its slot. It is called
// with the table of ports locked: a guest that is released meanwhile leaves it later.
func (s *Server) guestPorts(guests []helper.GuestNetwork) (out ports, err error) {
	slots, err := s.slots.read()
	if err != nil {
		return nil, err
	}
	out = ports{}
	for _, g := range guests {
		slot, err := s.slots.find(slots, g.ID)
		if err != nil {
			return nil, err
		}
		address, ok := s.record.GuestAddress(slot.Slot)
		if !ok {
			return nil, noRoom(s.record)
		}
		out[g.ID] = port{Address: address.Addr(), NAT: g.NAT, Group: g.Group}
	}
	return out, nil
}

// applyNetwork is the verb. What a guest may holds from the launch of the VM
// to its end: without a jail there is nothing that could be allowed anything.
func (s *Server) applyNetwork(ctx context.Context, r helper.NetworkRequest) (helper.Empty, error) {
	if err := checkGuests(r); err != nil {
		return helper.Empty{}, err
	}
	err := s.net.update(ctx, func(t ports) error {
		guests, err := s.guestPorts(r.Guests)
		if err != nil {
			return err
		}
		before := maps.Clone(t)
		if r.Whole {
			maps.DeleteFunc(t, func(id string, _ port) bool { return !s.places.hasJail(id) })
			for id, p := range t {
				t[id] = port{Address: p.Address, Pinned: p.Pinned}
			}
		}
		for id, g := range guests {
			if !s.places.hasJail(id) {
				if r.Whole { // it ended meanwhile
					continue
				}
				return api.Conflict("VM %s is not running", id).WithHint("call vm.launch first")
			}
			g.Pinned = before[id].Pinned
			if g.Group == before[id].Group {
				g.Mark = before[id].Mark
			}
			t[id] = g
		}
		return nil
	})
	if err == nil && r.Whole {
		// Ports are joined again; rules that are known to be whole are not loaded.
		s.net.mu.Lock()
		s.net.loose = true
		s.net.mu.Unlock()
		_, err = s.ensureBridge(ctx, helper.Empty{})
	}
	return helper.Empty{}, err
}
