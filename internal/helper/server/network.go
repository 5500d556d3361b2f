package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/helper"
	"banger/internal/installed"
)

// network is the bridge and the rules. Who changes them holds the file lock
// "ports", shared with "banger-helper cleanup ID"; mu guards only the fields.
type network struct {
	places Places
	record installed.Record
	bus    *systemBus
	name   string // of this process, by which the kernel tells who changed a rule

	scanning sync.Mutex // held for a whole scan, which may add rules
	making   sync.Mutex // held while the bridge is looked at and mended

	mu       sync.Mutex
	good     uint32 // generation up to which our rules are known to be whole; 0 = unknown
	loose    bool   // the bridge was changed, and its ports may have left it
	scanned  uint32 // generation the warnings are of
	warnings []string
	resolver int32 // index of the link that the resolver was told of
}

func newNetwork(record installed.Record, p Places, bus *systemBus) (*network, error) {
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return nil, err
	}
	return &network{places: p, record: record, bus: bus, name: strings.TrimSpace(string(name))}, nil
}

// ensureBridge is the verb. It is part of every start: when nothing changed
// since the last time, it asks the kernel four questions.
func (s *Server) ensureBridge(ctx context.Context, _ helper.Empty) (helper.Network, error) {
	n := s.net
	gen, err := generation()
	if err != nil {
		return helper.Network{}, err
	}
	n.mu.Lock()
	if int32(gen-n.good) > 0 { // the watch does not know of it yet
		n.good = 0
	}
	whole := n.good != 0 && !n.loose
	n.mu.Unlock()
	if !whole {
		err = n.mend(ctx)
	} else {
		err = n.bringUp(ctx)
	}
	if err != nil {
		return helper.Network{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return helper.Network{Bridge: n.record.Bridge, Prefix: n.record.Network, Warnings: n.warnings}, nil
}

// bringUp does all but load the rules.
func (n *network) bringUp(ctx context.Context) error {
	bridge, err := n.makeBridge()
	if err != nil {
		return err
	}
	return errors.Join(n.tellResolver(ctx, bridge.index), n.scan(ctx))
}

// makeBridge lets one at a time look for the bridge and make it: two first
// starts at once would both find none.
func (n *network) makeBridge() (link, error) {
	n.making.Lock()
	defer n.making.Unlock()
	return ensureBridge(n.record)
}

// mend makes bridge and ports what the table of ports says, whatever they are,
// and the rules too unless they are known to be.
func (n *network) mend(ctx context.Context) error {
	err := n.places.locked(portsLock, func() error {
		t, err := n.places.loadPorts()
		if err != nil {
			return err
		}
		before := len(t)
		maps.DeleteFunc(t, func(id string, _ port) bool { return !n.places.hasJail(id) })
		if len(t) != before {
			if err := n.places.savePorts(t); err != nil {
				return err
			}
		}
		n.mu.Lock()
		whole := n.good != 0 && len(t) == before // else the rules still name a guest that is gone
		n.loose = false
		n.mu.Unlock()
		// The rules first, so that the bridge never is without.
		if !whole {
			if err := n.load(ctx, t); err != nil {
				return err
			}
		}
		bridge, err := n.makeBridge()
		if err != nil {
			return err
		}
		for _, id := range t.ids() {
			if t[id].Pinned {
				err = errors.Join(err, joinPort(id, t[id], bridge))
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	return n.bringUp(ctx)
}

// joinPort puts the VM's tap on the bridge; a VM that has just ended has none.
func joinPort(id string, p port, bridge link) error {
	l, err := linkByName(tapName(id))
	if err == nil {
		err = joinBridge(l, bridge, installed.GuestMAC(p.Address), p.Group != "")
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("port of VM %s: %w", id, err)
	}
	return nil
}

func (p Places) hasJail(id string) bool {
	_, err := os.Lstat(p.jail(id))
	return err == nil
}

// load replaces all rules by those for these ports.
func (n *network) load(ctx context.Context, t ports) error {
	rules, err := renderRules(n.record, t)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.good = 0
	if err := runNFT(ctx, rules); err != nil {
		return err
	}
	gen, err := generation()
	if err != nil {
		return err
	}
	// Somebody may have flushed before the number was read; afterwards the
	// watch tells.
	if !tablesPresent() {
		return errors.New("somebody removed the firewall rules at once")
	}
	n.good = gen
	return nil
}

// update changes the table of ports, and then the kernel accordingly.
func (n *network) update(ctx context.Context, change func(ports) error) error {
	return n.places.locked(portsLock, func() error {
		t, err := n.places.loadPorts()
		if err != nil {
			return err
		}
		before := maps.Clone(t)
		if err := errors.Join(change(t), t.mark()); err != nil {
			return err
		}
		if maps.Equal(before, t) {
			return nil
		}
		if err := n.places.savePorts(t); err != nil {
			return err
		}
		if del, add := difference(before, t); len(del)+len(add) > 0 {
			if err := n.step(del, add); err != nil { // the rules are not as we left them
				slog.Warn("loading the firewall rules anew", "err", err)
				if err := n.load(ctx, t); err != nil {
					return err
				}
			}
		}
		return regroup(before, t)
	})
}

// step changes elements. When the rules were whole before, they are after.
func (n *network) step(del, add []element) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := changeElements(del, add); err != nil {
		return fmt.Errorf("cannot change firewall sets: %w", err)
	}
	gen, err := generation()
	if err == nil && n.good != 0 && gen == n.good+1 { // else the watch judges the others
		n.good = gen
	}
	return err
}

// regroup isolates the ports that left a group, and opens those that came to one.
func regroup(before, after ports) (err error) {
	for _, id := range after.ids() {
		b, a := before[id], after[id]
		if !a.Pinned || (b.Group == "") == (a.Group == "") {
			continue
		}
		l, one := linkByName(tapName(id))
		if one == nil && l.master != 0 {
			one = isolate(l, a.Group != "")
		}
		if !errors.Is(one, unix.ENODEV) {
			err = errors.Join(err, one)
		}
	}
	return err
}

// plug is the network's part of vm.handover: first the rules pin the VM's
// addresses to its port, then the port appears. Calling it again is fine.
func (s *Server) plug(ctx context.Context, id string, slot int) error {
	address, ok := s.record.GuestAddress(slot)
	if !ok {
		return noRoom(s.record)
	}
	s.mu.Lock()
	ns := s.netns[id]
	s.mu.Unlock()
	if ns == nil {
		if _, err := linkByName(tapName(id)); err != nil {
			return errors.Join(api.Conflict("the network of VM %s was lost when the helper was stopped", id).
				WithHint("`banger vm kill` it and start it again"), ignoreNoDevice(err))
		}
	}
	// Without rules nothing would hold a port.
	if _, err := s.ensureBridge(ctx, helper.Empty{}); err != nil {
		return err
	}
	if err := s.net.update(ctx, func(t ports) error {
		p := t[id]
		p.Address, p.Pinned = address.Addr(), true
		t[id] = p
		return nil
	}); err != nil {
		return err
	}
	if err := fault.Point(ctx, "handover.pinned"); err != nil {
		return err
	}
	if ns != nil {
		if err := moveTap(ns, id); err != nil {
			return err
		}
	}
	if err := fault.Point(ctx, "handover.moved"); err != nil {
		return err
	}
	return s.places.locked(portsLock, func() error {
		t, err := s.places.loadPorts()
		if err != nil {
			return err
		}
		bridge, err := linkByName(s.record.Bridge)
		if err != nil {
			return err
		}
		return joinPort(id, t[id], bridge)
	})
}

func ignoreNoDevice(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func noRoom(r installed.Record) error {
	return api.Conflict("network %s has no address left for another VM", r.Network).WithHint("delete a VM")
}
