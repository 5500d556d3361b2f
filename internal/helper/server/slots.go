package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"banger/api"
	"banger/internal/helper"
)

// registry is the root-owned file that says which VM has which slot. Everything
// numeric of a VM, its uid first of all, comes from here and never from a
// caller, so no caller can give two VMs one uid.
type registry struct {
	places Places
	base   int // uid of slot 0
	count  int
}

const slotsLock = "slots"

// slotFile is the file's form. Unknown or impossible content is refused, not
// repaired: a guess could hand a running VM's uid to another.
type slotFile struct {
	Slots map[string]int `json:"slots"`
}

func (r *registry) slot(n int) helper.Slot { return helper.Slot{Slot: n, UID: r.base + n} }

// reserve gives the VM the smallest free slot, or the one it has.
func (r *registry) reserve(id string) (out helper.Slot, err error) {
	err = r.places.locked(slotsLock, func() error {
		f, err := r.load()
		if err != nil {
			return err
		}
		n, ok := f.Slots[id]
		if !ok {
			if n, err = f.free(r.count); err != nil {
				return err
			}
			f.Slots[id] = n
			if err := r.save(f); err != nil {
				return err
			}
		}
		out = r.slot(n)
		return nil
	})
	return out, err
}

// reserve is the verb.
func (s *Server) reserve(_ context.Context, r helper.ReserveRequest) (helper.Slot, error) {
	return s.slots.reserve(r.ID)
}

// lookup finds the VM's slot; a Problem with status 404 when it has none.
func (r *registry) lookup(id string) (helper.Slot, error) {
	f, err := r.read()
	if err != nil {
		return helper.Slot{}, err
	}
	return r.find(f, id)
}

// find is lookup for who has many to look up: the file is read once.
func (r *registry) find(f slotFile, id string) (helper.Slot, error) {
	n, ok := f.Slots[id]
	if !ok {
		return helper.Slot{}, api.NotFound("VM %s has no slot", id).WithHint("call vm.reserve first")
	}
	return r.slot(n), nil
}

// ids are the VMs that have a slot.
func (r *registry) ids() ([]string, error) {
	f, err := r.read()
	return slices.Sorted(maps.Keys(f.Slots)), err
}

func (r *registry) read() (f slotFile, err error) {
	err = r.places.locked(slotsLock, func() error {
		f, err = r.load()
		return err
	})
	return f, err
}

// release frees the VM's slot; it is fine if it has none.
func (r *registry) release(id string) error {
	return r.places.locked(slotsLock, func() error {
		f, err := r.load()
		if err != nil {
			return err
		}
		if _, ok := f.Slots[id]; !ok {
			return nil
		}
		delete(f.Slots, id)
		return r.save(f)
	})
}

func (r *registry) load() (slotFile, error) {
	raw, err := os.ReadFile(r.places.Slots)
	if errors.Is(err, fs.ErrNotExist) {
		return slotFile{Slots: map[string]int{}}, nil
	}
	if err != nil {
		return slotFile{}, fmt.Errorf("cannot read slot registry: %w", err)
	}
	f, err := parseSlots(raw, r.count)
	if err != nil {
		return slotFile{}, fmt.Errorf("cannot read slot registry %s: %w", r.places.Slots, err)
	}
	return f, nil
}

func parseSlots(raw []byte, count int) (slotFile, error) {
	var f slotFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return slotFile{}, err
	}
	if f.Slots == nil {
		return slotFile{}, errors.New("no slots in it")
	}
	owner := make(map[int]string, len(f.Slots))
	for id, n := range f.Slots {
		if !isID(id) || n < 0 || n >= count {
			return slotFile{}, fmt.Errorf("entry %q: %d is not possible", id, n)
		}
		if other, taken := owner[n]; taken {
			return slotFile{}, fmt.Errorf("slot %d belongs to both %s and %s", n, id, other)
		}
		owner[n] = id
	}
	return f, nil
}

func (r *registry) save(f slotFile) error {
	raw, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := writeAtomic(r.places.Slots, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("cannot write slot registry: %w", err)
	}
	return nil
}

func (f slotFile) free(count int) (int, error) {
	taken := make(map[int]bool, len(f.Slots))
	for _, n := range f.Slots {
		taken[n] = true
	}
	for n := range count {
		if !taken[n] {
			return n, nil
		}
	}
	return 0, api.Conflict("all %d slots are taken", count).WithHint("delete a VM")
}
