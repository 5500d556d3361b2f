package server

import (
	"context"
	"fmt"

	"banger/internal/helper"
)

// kill ends the VMM and returns when its unit, cleanup included, has ended, or
// if there is none. It takes no lock and needs no slot, and so works at any
// time; the unit's name is made from the id and can be no other's.
func (s *Server) kill(ctx context.Context, r helper.KillRequest) (helper.Empty, error) {
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	if r.NoWait {
		return helper.Empty{}, s.units.kill(ctx, r.ID)
	}
	return helper.Empty{}, stopUnit(ctx, s.units, r.ID)
}

func stopUnit(ctx context.Context, u units, id string) error {
	w, err := u.watch(ctx, id)
	if err != nil {
		return err
	}
	defer w.close()
	p, err := u.phase(ctx, id)
	if err != nil || p.over() {
		return err
	}
	if err := u.stop(ctx, id); err != nil {
		return err
	}
	if _, err := w.await(ctx, phase.over, nil); err != nil {
		return fmt.Errorf("cannot wait for the end of the unit of VM %s: %w", id, err)
	}
	return nil
}
