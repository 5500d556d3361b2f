package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/store"
)

// changer, a capability, makes a changed record true for a VM that has a VMM. What it cannot,
// it returns as the names of settings that wait for a restart.
type changer interface {
	applyChange(ctx context.Context, old, now *store.VM) (stale []string, err error)
}

func now() time.Time { return time.Now().UTC() }

// Change gives a VM other settings. What a VM that runs cannot take at once is
// stored, listed in Stale, and holds from its next start on. On an error
// nothing has changed.
func (m *Manager) Change(ctx context.Context, id string, c api.VMChange) (*store.VM, error) {
	var now *store.VM
	err := m.locked(ctx, id, func(old *store.VM) (err error) {
		if now, err = m.changed(ctx, old, c); err != nil {
			return err
		}
		ctx := context.WithoutCancel(ctx) // half a change is no use to anybody
		if old.ImageID != now.ImageID {
			err = m.withoutOverlay(old, func() error { return m.commit(ctx, old, now) })
		} else {
			err = m.commit(ctx, old, now)
		}
		if err != nil {
			return err
		}
		if alive(now) {
			m.touch(now.ID)
		}
		m.Log.InfoContext(ctx, "changed", "vm", now.ID, "name", now.Name, "stale", now.Stale)
		kind := api.EventChanged
		if old.Name != now.Name {
			kind = api.EventRenamed
		}
		m.events.tell(kind, now)
		return nil
	})
	return now, err
}

// changed is the record as it would be, or why it cannot be so.
func (m *Manager) changed(ctx context.Context, old *store.VM, c api.VMChange) (*store.VM, error) {
	if c == (api.VMChange{}) {
		return nil, api.BadRequest("cannot change VM %q: nothing was given to change", old.Name)
	}
	cannot := fmt.Sprintf("cannot change VM %q", old.Name)
	v := *old
	v.Stale = nil
	later := func(setting string, changed bool) {
		if changed && !idle(old) {
			v.Stale = append(v.Stale, setting)
		}
	}
	if set(&v.Name, c.Name) {
		if err := checkName(cannot, v.Name); err != nil {
			return nil, err
		}
		later("name", true) // as the guest's hostname
	}
	if c.Image != nil {
		if err := m.useImage(ctx, cannot, &v, *c.Image); err != nil {
			return nil, err
		}
		if v.ImageID != old.ImageID && !idle(old) {
			return nil, api.Conflict("%s: its root disk can only be exchanged while it does not run, and it is %s", cannot, old.State).
				WithHint("stop it first with `banger vm stop %s`", old.Name)
		}
	}
	if c.Kernel != nil {
		if err := m.useKernel(ctx, cannot, &v, *c.Kernel); err != nil {
			return nil, err
		}
		later("kernel", v.KernelID != old.KernelID)
	}
	later("vcpu", set(&v.VCPU, c.VCPU))
	later("memory", set(&v.MemoryMiB, c.MemoryMiB))
	if set(&v.DiskBytes, c.DiskBytes) {
		if v.DiskBytes < old.DiskBytes {
			return nil, api.BadRequest("%s: its work disk has %d MiB and cannot become smaller", cannot, old.DiskBytes>>20).
				WithHint("give more with --disk")
		}
		later("disk", old.DiskBytes == 0) // a drive is added with a start, and grows at any time
	}
	set(&v.NAT, c.NAT)
	set(&v.Network, c.Network)
	set(&v.Autostart, c.Autostart)
	set(&v.Restart, c.Restart)
	set(&v.IdleStop, c.IdleStopSeconds)
	// The helper gives a unit its shares when it makes it.
	later("cpu-weight", set(&v.CPUWeight, c.CPUWeight))
	later("io-weight", set(&v.IOWeight, c.IOWeight))
	later("cpu-limit", set(&v.CPULimit, c.CPULimitMillis))
	later("io-limit", set(&v.IOLimit, c.IOLimitBytes))
	if !idle(old) {
		v.Stale = merge(old.Stale, v.Stale)
	}
	return &v, m.check(ctx, cannot, &v)
}

// idle reports whether a VM has no VMM and is not about to get one.
func idle(v *store.VM) bool {
	return v.State == api.StateCreated || v.State == api.StateStopped || v.State == api.StateFailed
}

// merge adds the names in more to list.
func merge(list, more []string) []string {
	out := slices.Concat(list, more)
	slices.Sort(out)
	return slices.Compact(out)
}

// commit makes a change true. The disk comes last: it cannot be undone.
func (m *Manager) commit(ctx context.Context, old, now *store.VM) error {
	first := *now
	first.DiskBytes = old.DiskBytes
	if err := m.apply(ctx, old, &first); err != nil {
		return err
	}
	if now.DiskBytes == old.DiskBytes {
		*now = first
		return nil
	}
	now.Stale = merge(first.Stale, now.Stale)
	if err := m.apply(ctx, &first, now); err != nil {
		return errors.Join(err, m.apply(ctx, &first, old))
	}
	return nil
}

// apply stores a record and makes it true for the VM, if that has a VMM. The
// record comes first: bangerd's next start makes true what it says.
func (m *Manager) apply(ctx context.Context, from, to *store.VM) error {
	if err := m.Store.UpdateVM(ctx, to); err != nil {
		return refusedUpdate(from, to, err)
	}
	if err := fault.Point(ctx, "set.stored"); err != nil {
		return errors.Join(err, m.Store.UpdateVM(ctx, from))
	}
	if !alive(to) {
		return nil
	}
	for i, c := range m.changes {
		stale, err := c.applyChange(ctx, from, to)
		if err == nil {
			to.Stale = merge(to.Stale, stale)
			continue
		}
		errs := []error{fmt.Errorf("cannot change VM %q: %w", from.Name, err)}
		if from.DiskBytes == to.DiskBytes {
			for _, c := range slices.Backward(m.changes[:i+1]) {
				_, err := c.applyChange(ctx, to, from)
				errs = append(errs, err)
			}
		}
		return errors.Join(append(errs, m.Store.UpdateVM(ctx, from))...)
	}
	return m.Store.UpdateVM(ctx, to) // with what the features left for later
}

func refusedUpdate(from, to *store.VM, err error) error {
	switch {
	case errors.Is(err, store.ErrExists):
		return api.Conflict("cannot change VM %q: the name %q is taken", from.Name, to.Name).WithHint("choose another with --name")
	case errors.Is(err, store.ErrInUse):
		return api.Conflict("cannot change VM %q: image %q or kernel %q has just been deleted", from.Name, to.ImageName, to.KernelName)
	}
	return err
}

// asideOverlay is the name of an overlay that was put aside, with the image it
// belongs to: a start that finds its own has been cut off from it by a crash.
func asideOverlay(overlay, imageID string) string { return overlay + ".aside-" + imageID }

// withoutOverlay runs f while the VM's overlay is put aside, and then removes
// it: it belongs to the image the VM had and would be rubbish over another one.
// So it goes before the record changes, and comes back if that fails.
func (m *Manager) withoutOverlay(v *store.VM, f func() error) error {
	overlay := filepath.Join(m.dir(v), "overlay.cow")
	aside := asideOverlay(overlay, v.ImageID)
	err := os.Rename(overlay, aside)
	if errors.Is(err, fs.ErrNotExist) {
		return f() // never started
	}
	if err != nil {
		return fmt.Errorf("cannot put the root disk of VM %q aside: %w", v.Name, err)
	}
	if err := f(); err != nil {
		return errors.Join(err, os.Rename(aside, overlay))
	}
	if err := os.Remove(aside); err != nil {
		m.Log.Warn("cannot remove an old root disk", "vm", v.ID, "path", aside, "error", err)
	}
	return nil
}
