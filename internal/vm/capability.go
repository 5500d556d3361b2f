package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/guest"
	"banger/internal/store"
)

// capability is a feature that takes part in several moments of a VM's life. A
// new one is a file capability_<name>.go and a line in capabilities. Those who
// need only some of the hooks embed noHooks.
type capability interface {
	name() string
	// preflight refuses a start that cannot succeed, before anything is made.
	preflight(ctx context.Context, r *startRun) error
	// contribute adds to what Firecracker and the guest are told.
	contribute(r *startRun, m *machine) error
	// prepareHost makes what has to be there before the VMM is.
	prepareHost(ctx context.Context, r *startRun) error
	// postStart completes a VM whose guest answers, also one that runs already
	// when bangerd starts; so it may be called again.
	postStart(ctx context.Context, v *store.VM) error
	// cleanup undoes the two above; idempotent, and called for a VM of which
	// nothing is left too.
	cleanup(ctx context.Context, v *store.VM) error
	// applyChange makes a changed record true for a VM that runs. What it
	// cannot, it returns as names of settings that wait for a restart.
	applyChange(ctx context.Context, old, now *store.VM) (stale []string, err error)
	// checks are this capability's part of doctor.
	checks(ctx context.Context) []api.Check
}

// machine is what one start tells Firecracker and the guest.
type machine struct {
	drives []firecracker.Drive
	cards  []firecracker.Card
	guest  guest.Identity
}

// noHooks does nothing at any moment.
type noHooks struct{}

func (noHooks) preflight(context.Context, *startRun) error   { return nil }
func (noHooks) contribute(*startRun, *machine) error         { return nil }
func (noHooks) prepareHost(context.Context, *startRun) error { return nil }
func (noHooks) postStart(context.Context, *store.VM) error   { return nil }
func (noHooks) cleanup(context.Context, *store.VM) error     { return nil }
func (noHooks) checks(context.Context) []api.Check           { return nil }
func (noHooks) applyChange(context.Context, *store.VM, *store.VM) ([]string, error) {
	return nil, nil
}

// capabilities are all there are, in the order in which their hooks run.
func (m *Manager) capabilities() []capability {
	return []capability{workDisk{m: m}, dnsName{m: m}, nat{m: m}}
}

// each runs one hook of all capabilities up to the first error.
func (m *Manager) each(hook func(capability) error) error {
	for _, c := range m.capabilities() {
		if err := hook(c); err != nil {
			return fmt.Errorf("%s: %w", c.name(), err)
		}
	}
	return nil
}

// cleanupCapabilities runs every cleanup, the last capability first, whatever
// the others say.
func (m *Manager) cleanupCapabilities(ctx context.Context, v *store.VM) error {
	var errs []error
	for _, c := range slices.Backward(m.capabilities()) {
		if err := c.cleanup(ctx, v); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.name(), err))
		}
	}
	return errors.Join(errs...)
}
