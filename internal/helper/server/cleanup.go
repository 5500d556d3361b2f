package server

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"time"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/helper"
)

// clean removes everything the VM has in the kernel and on disk. Idempotent;
// one failure does not stop the rest. The caller knows that no VMM is alive.
func (p Places) clean(ctx context.Context, id string) error {
	return p.locked(id, func() error {
		return errors.Join(removeDisks(ctx, id), fault.Point(ctx, "cleanup.disks"), p.removeJail(id),
			fault.Point(ctx, "cleanup.jail"), p.removePort(id))
	})
}

// cleanup is the verb. It needs no slot: names are made from the id, and
// leftovers of a VM that was never known here are still leftovers.
func (s *Server) cleanup(ctx context.Context, r helper.VMRequest) (helper.Empty, error) {
	leave, err := s.gates.enter(ctx, r.ID)
	if err != nil {
		return helper.Empty{}, err
	}
	defer leave()
	return helper.Empty{}, s.cleanEnded(ctx, r.ID)
}

// cleanEnded is for who is in the VM's gate.
func (s *Server) cleanEnded(ctx context.Context, id string) error {
	if err := s.requireOver(ctx, id); err != nil {
		return err
	}
	if err := s.endCheck(ctx, id); err != nil {
		return err
	}
	return errors.Join(s.dropNetNS(id), s.places.clean(ctx, id))
}

// requireOver refuses while the VM's unit lives, and waits for one that is
// ending already.
func (s *Server) requireOver(ctx context.Context, id string) error {
	p, err := s.units.phase(ctx, id)
	if err != nil {
		return err
	}
	if p == unitEnding {
		if p, err = s.awaitUnit(ctx, id, phase.over); err != nil {
			return err
		}
	}
	if !p.over() {
		return api.Conflict("VM %s is running", id).WithHint("call vm.kill first")
	}
	return nil
}

// Cleanup is what `banger-helper cleanup ID` does. systemd runs it after every
// end of a VM's unit, with all rights, whether or not the helper service is up;
// an administrator can run it too.
func Cleanup(ctx context.Context, id string) error {
	return cleanupProcess(ctx, InstalledPlaces(), id, os.Getenv, &systemd{&systemBus{}, vmKind})
}

func cleanupProcess(ctx context.Context, p Places, id string, getenv func(string) string, u units) error {
	start := time.Now()
	if err := checkID(id); err != nil {
		return err
	}
	makeErr := p.make()
	bySystemd := getenv("SERVICE_RESULT") != ""
	if !bySystemd {
		if ph, err := u.phase(ctx, id); err != nil || !ph.over() {
			return errors.Join(err, errors.New("the unit has not ended"))
		}
	}
	errs := []error{makeErr}
	if bySystemd {
		// First, so that it is kept whatever happens to the rest.
		errs = append(errs, p.writeExit(id, getenv))
		// Even with all rights this process starts in the VM's network
		// namespace. The lock is not undone: the process ends after this.
		runtime.LockOSThread()
		errs = append(errs, enterHostNetNS())
	}
	errs = append(errs, p.clean(ctx, id))
	err := errors.Join(errs...)
	slog.Info("cleaned up", "id", id, "ms", time.Since(start).Milliseconds(), "result", getenv("SERVICE_RESULT"), "err", err)
	return err
}
