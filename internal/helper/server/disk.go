package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/helper"
	"banger/internal/paths"
)

// chunkSectors is the unit in which the overlay takes over from the base. All
// sizes are multiples of it.
const chunkSectors = 8

// disk is one of a VM's block devices, by names that follow from its id.
type disk struct{ id, role, jailPath string }

func rootDisk(id string) disk { return disk{id, "rootfs", paths.JailRootfs} }
func workDisk(id string) disk { return disk{id, "work", paths.JailWork} }

// disksOf returns all disks a VM can have; each has the first.
func disksOf(id string) []disk { return []disk{rootDisk(id), workDisk(id)} }

func (d disk) name() string { return "fc-" + d.role + "-" + d.id }
func (d disk) uuid() string { return "BANGER-" + d.role + "-" + d.id }

// device is a disk that exists.
type device struct {
	disk
	dmStatus
}

func (d device) number() string { return fmt.Sprintf("%d:%d", unix.Major(d.dev), unix.Minor(d.dev)) }

func (d device) describe() helper.Disk {
	return helper.Disk{Name: d.name(), Major: unix.Major(d.dev), Minor: unix.Minor(d.dev),
		Bytes: int64(d.targets[0].sectors) * 512}
}

// find returns the device; fs.ErrNotExist if there is none, and a conflict if
// what has its name is not ours or cannot be used.
func (d disk) find(dm *dmControl) (device, error) {
	st, err := dm.status(d.name())
	if err == nil {
		err = d.check(st)
	}
	return device{d, st}, err
}

func (d disk) check(st dmStatus) error {
	switch {
	case st.uuid != d.uuid():
		return d.busy("was not made by banger")
	case !st.active || st.suspended || len(st.targets) != 1:
		return d.busy("is not usable")
	}
	return nil
}

func (d disk) busy(how string) error {
	return api.Problemf(http.StatusConflict, helper.CodeBusy, "disk %s exists already and %s", d.name(), how).
		WithHint("call vm.cleanup first")
}

// attached returns the VM's disks, the root disk first.
func attached(id string) (out []device, err error) {
	dm, err := openDM()
	if err != nil {
		return nil, err
	}
	defer dm.Close()
	for _, d := range disksOf(id) {
		have, err := d.find(dm)
		if errors.Is(err, fs.ErrNotExist) && d != rootDisk(id) {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, api.Conflict("VM %s has no disk", id).WithHint("call vm.attach first")
		}
		if err != nil {
			return nil, err
		}
		out = append(out, have)
	}
	return out, nil
}

// layer is an open file of the owner and how its loop device is to be made.
type layer struct {
	f     *os.File
	st    unix.Stat_t
	flags uint32
}

// recipe is what a disk is made of: a target over its layers. The table names
// them in this order, before the options, and the first gives the size.
type recipe struct {
	disk
	layers        []layer
	kind, options string
}

// attach makes the VM's disks: the root disk of the owner's base image, which
// is only read, under his overlay; the work disk of a file.
func (s *Server) attach(ctx context.Context, r helper.AttachRequest) (out helper.Attached, err error) {
	_, leave, err := s.hold(ctx, r.ID)
	if err != nil {
		return out, err
	}
	defer leave()
	layers, err := s.layers(r)
	defer func() {
		for _, l := range layers {
			err = errors.Join(err, l.f.Close())
		}
	}()
	if err != nil {
		return out, err
	}
	if err := checkOverlay(r.Overlay, layers[1].f); err != nil {
		return out, err
	}
	recipes := []recipe{{rootDisk(r.ID), layers[:2], "snapshot", "P " + strconv.Itoa(chunkSectors)}}
	if r.Work != "" {
		recipes = append(recipes, recipe{workDisk(r.ID), layers[2:], "linear", "0"})
	}
	var have []device
	err = s.places.locked(r.ID, func() (err error) {
		have, err = ensureDisks(ctx, r.ID, recipes)
		return err
	})
	if err != nil {
		return out, err
	}
	out.Root = have[0].describe()
	if r.Work != "" {
		work := have[1].describe()
		out.Work = &work
	}
	return out, nil
}

// layers opens the files of a request: base, overlay and, if it has one, work.
// They are to be closed also if it fails.
func (s *Server) layers(r helper.AttachRequest) (out []layer, err error) {
	// The base goes through the page cache, which all VMs of one image share;
	// the others have one reader, who has a cache of its own.
	out = []layer{{flags: unix.LO_FLAGS_READ_ONLY}, {flags: unix.LO_FLAGS_DIRECT_IO}, {flags: unix.LO_FLAGS_DIRECT_IO}}
	files := []string{r.Base, r.Overlay, r.Work}
	if r.Work == "" {
		files = files[:2]
	}
	for i, path := range files {
		l, mode := &out[i], os.O_RDWR
		if l.flags == unix.LO_FLAGS_READ_ONLY {
			mode = os.O_RDONLY
		}
		if !attachable(path) {
			return out[:i], api.BadRequest("%.200q is no disk: want images/ID/rootfs.ext4, or a file in vms/ID", path)
		}
		if l.f, l.st, err = s.ownerFile(path, mode); err != nil {
			return out[:i], err
		}
		if l.st.Size%(chunkSectors*512) != 0 {
			return out[:i+1], api.BadRequest("size of %.200q must be a multiple of %d bytes", path, chunkSectors*512).
				WithHint("if nothing is missing at its end, lengthen it: truncate --size=%%%d FILE", chunkSectors*512)
		}
		for _, other := range out[:i] {
			if l.st.Dev == other.st.Dev && l.st.Ino == other.st.Ino {
				return out[:i+1], api.BadRequest("base, overlay and work must be different files")
			}
		}
	}
	return out[:len(files)], nil
}

// attachable are the names by which udev knows the files of disks, and has nobody look
// into them, also when the helper that attached them has gone.
func attachable(path string) bool {
	parts := strings.Split(path, "/")
	if len(parts) < 3 || !isID(parts[1]) {
		return false
	}
	return parts[0] == "vms" || parts[0] == "images" && len(parts) == 3 && parts[2] == "rootfs.ext4"
}

// ensureDisks makes the disks that are not there and compares those that are.
// If it fails, it has made none.
func ensureDisks(ctx context.Context, id string, recipes []recipe) (out []device, err error) {
	dm, err := openDM()
	if err != nil {
		return nil, err
	}
	defer dm.Close()
	var made []disk
	defer func() {
		if err != nil {
			for _, d := range made {
				err = errors.Join(err, removeDisk(context.WithoutCancel(ctx), dm, d))
			}
		}
	}()
	if len(recipes) == 1 {
		if _, err := dm.status(workDisk(id).name()); err == nil {
			return nil, workDisk(id).busy("is not wanted")
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	for _, r := range recipes {
		have, err := r.find(dm)
		switch {
		case err == nil:
			err = r.compare(have)
		case errors.Is(err, fs.ErrNotExist):
			if have.dmStatus, err = r.make(ctx, dm); err == nil {
				made = append(made, r.disk)
				err = r.compare(have) // an overlay may have been exchanged behind checkOverlay
			}
		}
		if err != nil {
			return nil, err
		}
		out = append(out, have)
	}
	return out, nil
}

func (r recipe) make(ctx context.Context, dm *dmControl) (st dmStatus, err error) {
	var loops []*loopDevice
	// After that the dm device holds the loops, or nobody, and they go.
	defer func() {
		for _, l := range loops {
			err = errors.Join(err, l.f.Close())
		}
	}()
	for _, l := range r.layers {
		loop, err := attachLoop(l.f, l.flags)
		if err != nil {
			return st, err
		}
		loops = append(loops, loop)
	}
	if err := fault.Point(ctx, "attach.loops"); err != nil {
		return st, err
	}
	name := r.name()
	if err := dm.create(name, r.uuid()); err != nil {
		return st, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dm.remove(name))
		}
	}()
	if err := dm.load(name, r.table(loops)); err != nil {
		return st, r.unloadable(err)
	}
	if err := fault.Point(ctx, "attach.loaded"); err != nil {
		return st, err
	}
	if err := dm.resume(name); err != nil {
		return st, err
	}
	if st, err = dm.status(name); err == nil {
		err = r.check(st)
	}
	return st, err
}

// unloadable tells an overlay that the kernel does not take for one from what is
// no fault of the caller's.
func (r recipe) unloadable(err error) error {
	if r.kind != "snapshot" || !errors.Is(err, unix.ENXIO) {
		return err
	}
	return damagedOverlay("of disk " + r.name())
}

// snapMagic begins an overlay that has been in use ("SnAp"); a new one has zeros.
const snapMagic = 0x70416e53

// checkOverlay refuses an overlay whose header has chunks of another size than ours:
// the kernel believes it, and takes memory by that size, gigabytes of it.
func checkOverlay(path string, f io.ReaderAt) error {
	var head [16]byte // magic, valid, version, sectors of a chunk: little-endian, 32 bits each
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return fmt.Errorf("cannot read the overlay: %w", err)
	}
	magic, chunk := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[12:])
	if magic == snapMagic && chunk != chunkSectors {
		return damagedOverlay(path)
	}
	return nil // what is no header at all the kernel refuses
}

func damagedOverlay(which string) error {
	return api.Problemf(http.StatusUnprocessableEntity, helper.CodeDamaged, "the overlay %.200s is damaged: the kernel finds no snapshot in it", which).
		WithHint("what the guest wrote to its root disk is lost, unless there is a copy of overlay.cow; the work disk is another file")
}

func (r recipe) table(loops []*loopDevice) dmTarget {
	var names []string
	for _, l := range loops {
		names = append(names, l.name())
	}
	return dmTarget{loops[0].sectors, r.kind, strings.Join(append(names, r.options), " ")}
}

// compare says whether a disk is the one that was asked for: of exactly these
// files, in this way.
func (r recipe) compare(have device) error {
	t := have.targets[0]
	names := strings.Fields(t.params)
	if len(names) < len(r.layers) {
		return r.busy("has another table")
	}
	names = names[:len(r.layers)]
	if t.kind != r.kind || t.params != strings.Join(append(names, r.options), " ") {
		return r.busy("has another table")
	}
	for i, l := range r.layers {
		info, err := loopBacking(names[i])
		if err != nil {
			return fmt.Errorf("cannot read what disk %s is made of: %w", r.name(), err)
		}
		if info.Device != l.st.Dev || info.Inode != l.st.Ino || (info.Flags^l.flags)&unix.LO_FLAGS_READ_ONLY != 0 {
			return r.busy("is made of other files")
		}
	}
	if int64(t.sectors)*512 != r.layers[0].st.Size {
		return r.busy("has another size")
	}
	return nil
}

// dropWithVMM makes the kernel remove the disks when Firecracker, which must
// have them open by now, lets go of them, however that happens.
func dropWithVMM(id string) error {
	disks, err := attached(id)
	if err != nil {
		return err
	}
	for _, d := range disks {
		if d.openCount == 0 { // it would be gone at once
			return api.Conflict("firecracker has not opened disk %s yet", d.name()).WithHint("configure its drives first")
		}
	}
	dm, err := openDM()
	if err != nil {
		return err
	}
	defer dm.Close()
	for _, d := range disks {
		err = errors.Join(err, dm.remove(d.name()))
	}
	return err
}

// diskDeadline bounds the wait for whoever still has a disk open: udev for
// moments after it was made, or a process that the kernel is still burying.
const diskDeadline = 5 * time.Second

// removeDisks removes the VM's disks and returns when they are gone. It is fine
// if there are none.
func removeDisks(ctx context.Context, id string) error {
	dm, err := openDM()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no device-mapper, no disk
	}
	if err != nil {
		return err
	}
	defer dm.Close()
	for _, d := range disksOf(id) {
		err = errors.Join(err, removeDisk(ctx, dm, d))
	}
	return err
}

// removeDisk leaves the loops below without a user, unless udev still looks at
// one, and the kernel frees them by itself.
func removeDisk(ctx context.Context, dm *dmControl, d disk) error {
	name := d.name()
	st, err := dm.status(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.uuid != d.uuid():
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
