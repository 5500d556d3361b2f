package dns

import (
	"net/netip"
	"strings"
	"sync"
)

// Table maps names of VMs to addresses and back. It is safe for concurrent
// use; the zero value is empty.
type Table struct {
	mu      sync.RWMutex
	forward map[string]netip.Addr // by lower-case label
	reverse map[netip.Addr]string
}

// Set makes name point to addr, and addr to name.
func (t *Table) Set(name string, addr netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setLocked(strings.ToLower(name), addr)
}

func (t *Table) setLocked(name string, addr netip.Addr) {
	if t.forward == nil {
		t.forward, t.reverse = map[string]netip.Addr{}, map[netip.Addr]string{}
	}
	t.deleteLocked(name)
	t.forward[name], t.reverse[addr] = addr, name
}

// Delete forgets name. A name that is not known is none already.
func (t *Table) Delete(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.deleteLocked(strings.ToLower(name))
}

func (t *Table) deleteLocked(name string) {
	addr, ok := t.forward[name]
	if !ok {
		return
	}
	delete(t.forward, name)
	if t.reverse[addr] == name { // else the address has gone to another VM
		delete(t.reverse, addr)
	}
}

// Replace makes the table hold what all holds, at once.
func (t *Table) Replace(all map[string]netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forward, t.reverse = nil, nil
	for name, addr := range all {
		t.setLocked(strings.ToLower(name), addr)
	}
}

func (t *Table) address(name string) (netip.Addr, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	addr, ok := t.forward[strings.ToLower(name)]
	return addr, ok
}

func (t *Table) name(addr netip.Addr) (string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	name, ok := t.reverse[addr]
	return name, ok
}
