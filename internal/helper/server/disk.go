package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
)

// chunkSectors is the unit in which the overlay takes over from the base.
const chunkSectors = 8

// attach makes the VM's root disk: the owner's base image, which is only read,
// under his overlay.
func (s *Server) attach(ctx context.Context, r helper.AttachRequest) (helper.Attached, error) {
	if _, err := s.slots.lookup(r.ID); err != nil {
		return helper.Attached{}, err
	}
	leave, err := s.gates.enter(ctx, r.ID)
	if err != nil {
		return helper.Attached{}, err
	}
	defer leave()
	base, baseStat, err := s.ownerFile(r.Base, unix.O_RDONLY)
	if err != nil {
		return helper.Attached{}, err
	}
	defer base.Close()
	overlay, overlayStat, err := s.ownerFile(r.Overlay, unix.O_RDWR)
	if err != nil {
		return helper.Attached{}, err
	}
	defer overlay.Close()
	switch {
	case baseStat.Dev == overlayStat.Dev && baseStat.Ino == overlayStat.Ino:
		return helper.Attached{}, api.BadRequest("base and overlay are the same file")
	case baseStat.Size%(chunkSectors*512) != 0 || overlayStat.Size%(chunkSectors*512) != 0:
		return helper.Attached{}, api.BadRequest("size of base and overlay must be a multiple of %d bytes", chunkSectors*512)
	}

	var out helper.Attached
	err = s.places.locked(r.ID, func() error {
		dm, err := openDM()
		if err != nil {
			return err
		}
		defer dm.Close()
		have, err := dm.status(diskName(r.ID))
		switch {
		case err == nil:
			err = sameDisk(have, r.ID, &baseStat, &overlayStat)
		case errors.Is(err, fs.ErrNotExist):
			// The base goes through the page cache, which all VMs of one image
			// share; the overlay has one reader, who has a cache of its own.
			have, err = makeDisk(dm, r.ID,
				loopFile{base, unix.LO_FLAGS_READ_ONLY}, loopFile{overlay, unix.LO_FLAGS_DIRECT_IO})
		}
		if err != nil {
			return err
		}
		out.Root = helper.Disk{Name: diskName(r.ID), Major: unix.Major(have.dev), Minor: unix.Minor(have.dev),
			Bytes: int64(have.targets[0].sectors) * 512}
		return nil
	})
	return out, err
}

// loopFile is an open file and how its loop device is to be made.
type loopFile struct {
	f     *os.File
	flags uint32
}

func (l loopFile) attach() (*loopDevice, error) { return attachLoop(l.f, l.flags) }

func makeDisk(dm *dmControl, id string, baseFile, overlayFile loopFile) (st dmStatus, err error) {
	base, err := baseFile.attach()
	if err != nil {
		return st, err
	}
	// From here on the dm device holds the loops, or nobody, and they go.
	defer func() { err = errors.Join(err, base.f.Close()) }()
	overlay, err := overlayFile.attach()
	if err != nil {
		return st, err
	}
	defer func() { err = errors.Join(err, overlay.f.Close()) }()

	name := diskName(id)
	if _, err := dm.create(name, diskUUID(id)); err != nil {
		return st, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dm.remove(name))
		}
	}()
	if err := dm.load(name, snapshotTable(base, overlay)); err != nil {
		return st, err
	}
	if err := dm.resume(name); err != nil {
		return st, err
	}
	if st, err = dm.status(name); err == nil && len(st.targets) != 1 {
		err = fmt.Errorf("device %s has %d targets", name, len(st.targets))
	}
	return st, err
}

func snapshotTable(base, overlay *loopDevice) dmTarget {
	return dmTarget{sectors: base.sectors, kind: "snapshot",
		params: fmt.Sprintf("%s %s P %d", base.name(), overlay.name(), chunkSectors)}
}

// sameDisk says whether an existing device is the one that was asked for:
// ours, alive, and made of exactly these two files.
func sameDisk(have dmStatus, id string, base, overlay *unix.Stat_t) error {
	busy := func(format string, args ...any) error {
		return api.Problemf(http.StatusConflict, helper.CodeBusy, "disk %s exists already and %s", diskName(id), fmt.Sprintf(format, args...)).
			WithHint("call vm.cleanup first")
	}
	if have.uuid != diskUUID(id) {
		return busy("was not made by banger")
	}
	if !have.active || have.suspended || len(have.targets) != 1 {
		return busy("is not usable")
	}
	f := strings.Fields(have.targets[0].params)
	if have.targets[0].kind != "snapshot" || len(f) != 4 || f[2] != "P" || f[3] != strconv.Itoa(chunkSectors) {
		return busy("has another table")
	}
	for i, want := range []*unix.Stat_t{base, overlay} {
		info, err := loopBacking(f[i])
		if err != nil {
			return fmt.Errorf("cannot read what disk %s is made of: %w", diskName(id), err)
		}
		if info.Device != want.Dev || info.Inode != want.Ino || (info.Flags&unix.LO_FLAGS_READ_ONLY != 0) != (i == 0) {
			return busy("is made of other files")
		}
	}
	return nil
}

// attachedDisk returns the VM's attached root disk.
func attachedDisk(id string) (dmStatus, error) {
	none := api.Conflict("VM %s has no disk", id).WithHint("call vm.attach first")
	dm, err := openDM()
	if err != nil {
		return dmStatus{}, err
	}
	defer dm.Close()
	st, err := dm.status(diskName(id))
	if errors.Is(err, fs.ErrNotExist) {
		return st, none
	}
	if err == nil && (st.uuid != diskUUID(id) || !st.active || st.suspended) {
		return st, none
	}
	return st, err
}

// dropWithVMM makes the kernel remove the disk when Firecracker, which must
// have it open by now, lets go of it, however that happens.
func dropWithVMM(id string) error {
	st, err := attachedDisk(id)
	if err != nil {
		return err
	}
	if st.openCount == 0 { // it would be gone at once
		return api.Conflict("firecracker has not opened the disk of VM %s yet", id).WithHint("configure its drives first")
	}
	dm, err := openDM()
	if err != nil {
		return err
	}
	defer dm.Close()
	return dm.remove(diskName(id))
}

// diskDeadline bounds the wait for whoever still has a disk open: udev for
// moments after it was made, or a process that the kernel is still burying.
const diskDeadline = 5 * time.Second

// removeDisk removes the VM's root disk and returns when it is gone. It is fine
// if there is none. The loops below have no other user then, unless udev still
// looks at one, and the kernel frees them by itself.
func removeDisk(ctx context.Context, id string) error {
	dm, err := openDM()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no device-mapper, no disk
	}
	if err != nil {
		return err
	}
	defer dm.Close()
	name := diskName(id)
	st, err := dm.status(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.uuid != diskUUID(id):
		return fmt.Errorf("device %s was not made by banger, so it stays", name)
	case st.suspended && st.active:
		// Nobody can close a suspended device with writes under way.
		if err := dm.resume(name); err != nil {
			return err
		}
	}
	// The node vanishes from /dev in the same moment, also without udev.
	node := "dm-" + strconv.Itoa(int(unix.Minor(st.dev)))
	w, err := watchDir("/dev", unix.IN_DELETE)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := dm.remove(name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, diskDeadline)
	defer cancel()
	for {
		_, err := dm.status(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := w.wait(ctx, node); err != nil {
			return fmt.Errorf("cannot remove %s: somebody has %s open: %w", name, filepath.Join("/dev", node), err)
		}
	}
}
