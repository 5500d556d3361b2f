package server

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"banger/api"
	"banger/internal/helper"
)

// grow makes the VM's work disk as large as its file has become, also under a
// running VM, and also when it is as large already. A disk that is not attached
// needs none of this: it takes the size its file has then.
func (s *Server) grow(ctx context.Context, r helper.GrowRequest) (out helper.Disk, err error) {
	_, leave, err := s.hold(ctx, r.ID)
	if err != nil {
		return out, err
	}
	defer leave()
	err = s.places.locked(r.ID, func() (err error) {
		dm, err := openDM()
		if err != nil {
			return err
		}
		defer dm.Close()
		out, err = growDisk(dm, workDisk(r.ID))
		return err
	})
	return out, err
}

func growDisk(dm *dmControl, d disk) (out helper.Disk, err error) {
	have, err := d.find(dm)
	if errors.Is(err, fs.ErrNotExist) {
		return out, api.Conflict("VM %s has no work disk attached", d.id).
			WithHint("vm.attach takes the size that the file has by then")
	}
	if err != nil {
		return out, err
	}
	old := have.targets[0]
	name, _, _ := strings.Cut(old.params, " ")
	loop, err := resizeLoop(name)
	if err != nil {
		return out, err
	}
	switch {
	case loop.sectors%chunkSectors != 0:
		return out, api.BadRequest("size of the file must be a multiple of %d bytes", chunkSectors*512)
	case loop.sectors < old.sectors:
		return out, api.BadRequest("the file has become smaller than disk %s: %d bytes, not %d", d.name(), loop.sectors*512, old.sectors*512).
			WithHint("make it as large again; what it held at the end is lost")
	case loop.sectors > old.sectors:
		if err := dm.load(d.name(), dmTarget{loop.sectors, old.kind, old.params}); err != nil {
			return out, err
		}
		if err := dm.resume(d.name()); err != nil {
			// The kernel has thrown the new table away and may have left the
			// device suspended; this makes the old table live again.
			return out, errors.Join(err, dm.resume(d.name()))
		}
	}
	if have, err = d.find(dm); err != nil {
		return out, err
	}
	return have.describe(), nil
}
