package install

import (
	"context"
	"errors"
	"fmt"
	"io"

	"banger/api"
	"banger/internal/version"
)

// Upgrade brings an installation to this build. The owner stays who it is, and
// VMs keep running.
func Upgrade(ctx context.Context, o Options) error {
	h, err := thisHost(o.Out)
	if err != nil {
		return err
	}
	return h.upgrade(ctx, o)
}

func (h *host) upgrade(ctx context.Context, o Options) error {
	old, ok, err := h.oldRecord()
	if err != nil {
		return err
	}
	if !ok {
		return errNotInstalled("upgrade")
	}
	o.Owner = old.Owner
	if err := h.install(ctx, o); err != nil {
		return err
	}
	if old.Version == version.Version {
		h.say("banger is at %s", version.Version)
	} else {
		h.say("upgraded banger from %s to %s", old.Version, version.Version)
	}
	return nil
}

func errNotInstalled(verb string) *api.Problem {
	return api.NotFound("cannot %s banger: it is not installed on this host", verb).
		WithHint("sudo banger system install --owner $USER")
}

// Restart starts the services anew, or at all. VMs are units of their own.
func Restart(ctx context.Context, out io.Writer) error {
	h, err := thisHost(out)
	if err != nil {
		return err
	}
	return h.restart(ctx)
}

func (h *host) restart(ctx context.Context) (err error) {
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	old, ok, err := h.oldRecord()
	if err != nil {
		return err
	}
	if !ok {
		return errNotInstalled("restart")
	}
	if err := h.refuseOtherPlace(old); err != nil {
		return err
	}
	for _, s := range services {
		unit := s.name + ".service"
		state, err := h.unitState(ctx, unit)
		if err != nil {
			return err
		}
		if state.active {
			if _, err := h.run(ctx, "systemctl", "restart", unit); err != nil {
				return fmt.Errorf("cannot restart %s: %w", unit, err)
			}
			h.say("restarted %s", unit)
		}
		if err := h.bringUp(ctx, s, nil); err != nil { // what is down, sockets first
			return fmt.Errorf("cannot bring up %s: %w", s.name, err)
		}
	}
	return h.awaitDaemon(ctx)
}
