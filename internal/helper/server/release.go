package server

import (
	"context"

	"banger/internal/helper"
)

// release also cleans, so that no device or file of the old VM is left when
// its uid is given to another. Nothing comes between: it is in the gate for both.
func (s *Server) release(ctx context.Context, r helper.VMRequest) (helper.Empty, error) {
	leave, err := s.gates.enter(ctx, r.ID)
	if err != nil {
		return helper.Empty{}, err
	}
	defer leave()
	if err := s.cleanEnded(ctx, r.ID); err != nil {
		return helper.Empty{}, err
	}
	if err := s.places.forgetExit(r.ID); err != nil {
		return helper.Empty{}, err
	}
	return helper.Empty{}, s.slots.release(r.ID)
}
