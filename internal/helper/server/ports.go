package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"

	"banger/api"
)

// port is what the rules know of a VM that runs. The table of them is a file,
// since "banger-helper cleanup ID" and a helper that was restarted need it; it
// is gone after a reboot, as the VMs are. The rules in the kernel follow it.
type port struct {
	Address netip.Addr `json:"address"`
	// Pinned from vm.handover on. Before that there is nothing in the kernel.
	Pinned bool   `json:"pinned,omitempty"`
	NAT    bool   `json:"nat,omitempty"`
	Group  string `json:"group,omitempty"`
	Mark   uint32 `json:"mark,omitempty"` // of the group's frames; 0 without
}

// ports are by VM id.
type ports map[string]port

const portsLock = "ports"

func (t ports) ids() []string { return slices.Sorted(maps.Keys(t)) }

func (p Places) loadPorts() (ports, error) {
	raw, err := os.ReadFile(p.Ports)
	if errors.Is(err, fs.ErrNotExist) {
		return ports{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read table of ports: %w", err)
	}
	t := ports{}
	if err := json.Unmarshal(raw, &t); err != nil {
		return nil, fmt.Errorf("cannot read table of ports %s: %w", p.Ports, err)
	}
	for id, e := range t {
		if !isID(id) || !e.Address.Is4() || e.Mark != 0 && e.Mark&^maxMark != markBase {
			return nil, fmt.Errorf("cannot read table of ports %s: entry %q is not possible", p.Ports, id)
		}
	}
	return t, nil
}

func (p Places) savePorts(t ports) error {
	raw, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if err := writeAtomic(p.Ports, raw, 0o600); err != nil {
		return fmt.Errorf("cannot write table of ports: %w", err)
	}
	return nil
}

// mark gives every group a mark, one that it has before a new one.
func (t ports) mark() error {
	marks, taken := map[string]uint32{}, map[uint32]bool{}
	for _, p := range t {
		if p.Group != "" && p.Mark != 0 {
			marks[p.Group], taken[p.Mark] = p.Mark, true
		}
	}
	next := uint32(markBase + 1)
	for _, id := range t.ids() {
		p := t[id]
		switch {
		case p.Group == "":
			p.Mark = 0
		case marks[p.Group] != 0:
			p.Mark = marks[p.Group]
		default:
			for taken[next] {
				next++
			}
			if next > markBase+maxMark {
				return api.Conflict("there are more than %d groups", maxMark)
			}
			p.Mark = next
			marks[p.Group], taken[next] = next, true
		}
		t[id] = p
	}
	return nil
}

// removePort takes a VM that has ended out of the network: its tap, then what
// the rules say of it. Idempotent.
func (p Places) removePort(id string) error {
	err := removeTap(id)
	return errors.Join(err, p.locked(portsLock, func() error {
		t, err := p.loadPorts()
		if err != nil {
			return err
		}
		e, ok := t[id]
		if !ok {
			return nil
		}
		if err := removeElements(e.elements(id)); err != nil {
			return err
		}
		delete(t, id)
		return p.savePorts(t)
	}))
}
