package server

import (
	"context"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/helper"
	"banger/internal/paths"
)

// handover is called when Firecracker has opened its devices: from now on
// the kernel and systemd clean up after it, and this process holds nothing.
func (s *Server) handover(ctx context.Context, r helper.VMRequest) (helper.Empty, error) {
	slot, leave, err := s.hold(ctx, r.ID)
	if err != nil {
		return helper.Empty{}, err
	}
	defer leave()
	p, err := s.units.phase(ctx, r.ID)
	if err != nil {
		return helper.Empty{}, err
	}
	if p != unitRunning {
		return helper.Empty{}, api.Conflict("VM %s is not running", r.ID).WithHint("call vm.launch first")
	}
	err = s.places.locked(r.ID, func() error {
		if err := s.places.sealJail(r.ID, slot.UID, s.record.UID, paths.JailAPI, paths.JailVsock); err != nil {
			return err
		}
		if err := fault.Point(ctx, "handover.shared"); err != nil {
			return err
		}
		if err := dropWithVMM(r.ID); err != nil {
			return err
		}
		if err := fault.Point(ctx, "handover.dropped"); err != nil {
			return err
		}
		return s.plug(ctx, r.ID, slot.Slot)
	})
	if err != nil {
		return helper.Empty{}, err
	}
	return helper.Empty{}, s.dropNetNS(r.ID)
}
