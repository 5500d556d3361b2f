package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/helper"
	"banger/internal/paths"
)

// Limits of a VM. Firecracker takes 1 to 32 vCPUs.
const (
	maxVCPU      = 32
	minMemoryMiB = 32
	maxMemoryMiB = 1 << 20
	// systemd's range. It takes a CPUWeight of 0 for "idle": never pass that on.
	maxWeight, defaultWeight         = 10000, 100
	minCPUMillis, maxCPUMillis       = 10, maxVCPU * 1000
	minIOBytes, maxIOBytes     int64 = 1 << 20, 1 << 40 // a second
)

const (
	launchTime = 30 * time.Second
	stopTime   = 30 * time.Second
)

func checkLaunch(r helper.LaunchRequest) error {
	switch {
	case !isSHA256(r.Kernel):
		return api.BadRequest("kernel %.80q is not a sha256", r.Kernel)
	case !isSHA256(r.Initrd):
		return api.BadRequest("initrd %.80q is not a sha256", r.Initrd)
	case r.VCPU < 1 || r.VCPU > maxVCPU:
		return api.BadRequest("%d vCPUs are not possible: want 1 to %d", r.VCPU, maxVCPU)
	case r.MemoryMiB < minMemoryMiB || r.MemoryMiB > maxMemoryMiB:
		return api.BadRequest("%d MiB of memory are not possible: want %d to %d", r.MemoryMiB, minMemoryMiB, maxMemoryMiB)
	case r.CPUWeight < 0 || r.CPUWeight > maxWeight:
		return api.BadRequest("a CPU weight of %d is not possible: want 1 to %d, or 0 for %d", r.CPUWeight, maxWeight, defaultWeight)
	case r.IOWeight < 0 || r.IOWeight > maxWeight:
		return api.BadRequest("an IO weight of %d is not possible: want 1 to %d, or 0 for %d", r.IOWeight, maxWeight, defaultWeight)
	case r.CPULimitMillis != 0 && (r.CPULimitMillis < minCPUMillis || r.CPULimitMillis > maxCPUMillis):
		return api.BadRequest("a ceiling of %d thousandths of a CPU is not possible: want %d to %d, or 0 for none", r.CPULimitMillis, minCPUMillis, maxCPUMillis)
	case r.IOLimitBytes != 0 && (r.IOLimitBytes < minIOBytes || r.IOLimitBytes > maxIOBytes):
		return api.BadRequest("a ceiling of %d bytes a second is not possible: want %d to %d, or 0 for none", r.IOLimitBytes, minIOBytes, maxIOBytes)
	}
	return nil
}

// vmmBuild is what a VMM is started with.
type vmmBuild struct {
	helper.LaunchRequest
	uid       int
	disks     []device
	libraries []string // directories of the host that it is to see
}

// launch starts the VMM and returns when its API socket is there, or leaves no jail
// and no unit. Nothing is said to the VMM: its owner does that.
func (s *Server) launch(ctx context.Context, r helper.LaunchRequest) (out helper.Launched, err error) {
	if err := checkLaunch(r); err != nil {
		return out, err
	}
	slot, leave, err := s.hold(ctx, r.ID)
	if err != nil {
		return out, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, launchTime)
	defer cancel()
	if err := s.readyToLaunch(ctx, r.ID); err != nil {
		return out, err
	}
	b := vmmBuild{LaunchRequest: r, uid: slot.UID}
	if b.libraries, err = s.vmmLibraries(); err != nil {
		return out, err
	}
	if b.disks, err = attached(r.ID); err != nil {
		return out, err
	}
	staged := false
	defer func() {
		if err != nil && staged {
			err = errors.Join(err, s.undoLaunch(context.WithoutCancel(ctx), r.ID))
		}
	}()
	// Locked only while the jail is made, see lock.go.
	if err := s.places.locked(r.ID, func() error {
		if err := s.places.forgetExit(r.ID); err != nil {
			return err
		}
		err := s.places.stageJail(b)
		// A jail that was there before is not ours to remove.
		staged = !errors.Is(err, errJailExists)
		if err == nil {
			err = fault.Point(ctx, "launch.staged")
		}
		return err
	}); err != nil {
		return out, err
	}
	if err := s.startVMM(ctx, b); err != nil {
		return out, err
	}
	if err := s.places.locked(r.ID, func() error {
		return s.places.shareSocket(r.ID, slot.UID, s.record.UID, paths.JailAPI)
	}); err != nil {
		return out, err
	}
	return helper.Launched{Unit: unitName(r.ID), UID: slot.UID, Root: s.places.jailRoot(r.ID)}, nil
}

func (s *Server) readyToLaunch(ctx context.Context, id string) error {
	if err := s.checkPrograms(); err != nil {
		return err
	}
	kvm, err := openKVM()
	if err != nil {
		return api.Problemf(http.StatusPreconditionFailed, api.CodePrerequisite, "cannot use KVM: %v", err).
			WithHint("run `banger doctor`")
	}
	if err := kvm.Close(); err != nil {
		return err
	}
	if err := s.places.takesJails(); err != nil {
		return err
	}
	p, err := s.units.phase(ctx, id)
	if err != nil {
		return err
	}
	if p.alive() {
		return api.Conflict("VM %s is running", id)
	}
	if p != unitGone { // an earlier run's unit, whose name is not free yet
		_, err = s.awaitUnit(ctx, id, func(p phase) bool { return p == unitGone })
	}
	return err
}

// startVMM makes the namespace, starts the unit and waits for its API socket.
func (s *Server) startVMM(ctx context.Context, r vmmBuild) error {
	run := filepath.Dir(s.places.jailRoot(r.ID) + paths.JailAPI)
	sockets, err := watchDir(run, unix.IN_CREATE|unix.IN_MOVED_TO)
	if err != nil {
		return err
	}
	defer sockets.Close()
	netns, err := s.makeNetNS(r.ID, r.uid)
	if err != nil {
		return err
	}
	if err := fault.Point(ctx, "launch.netns"); err != nil {
		return err
	}
	w, err := s.units.watch(ctx, r.ID)
	if err != nil {
		return err
	}
	defer w.close()
	if err := s.units.start(ctx, r.ID, s.vmUnit(r, netns).properties()); err != nil {
		return err
	}
	if err := fault.Point(ctx, "launch.started"); err != nil {
		return err
	}

	appeared := make(chan struct{})
	socketCtx, stop := context.WithCancel(ctx)
	go func() {
		defer close(appeared)
		_ = sockets.wait(socketCtx, filepath.Base(paths.JailAPI)) // shareSocket tells more
	}()
	_, err = w.await(ctx, phase.dead, appeared)
	stop()
	<-appeared
	if err != nil {
		return fmt.Errorf("cannot wait for the API socket of VM %s: %w", r.ID, err)
	}
	// systemd calls the unit running when the jailer's first process has
	// left, which may be a moment later. Or all was over before.
	p, err := w.await(ctx, func(p phase) bool { return p == unitRunning || p.dead() }, nil)
	if err == nil && p.dead() {
		err = s.endedEarly(ctx, r.ID, w)
	}
	return err
}

func (s *Server) vmUnit(r vmmBuild, netns string) vmUnit {
	number := strconv.Itoa(r.uid)
	return vmUnit{
		id:  r.ID,
		uid: r.uid,
		exec: []string{s.record.Jailer, "--id", r.ID, "--exec-file", s.record.Firecracker,
			"--uid", number, "--gid", number, "--new-pid-ns",
			"--chroot-base-dir", filepath.Dir(s.places.Jails), "--", "--api-sock", paths.JailAPI},
		netns: netns,
		disks: r.disks,
		root:  s.places.jailRoot(r.ID),
		binds: r.libraries,
		// Beside the guest's own: Firecracker, page tables, device queues, and
		// some page cache for its disk.
		memory: uint64(r.MemoryMiB+r.MemoryMiB/32+128) << 20,
		// Beside the vCPUs: API, VMM and KVM's workers, or at the end the
		// threads of "banger-helper cleanup".
		tasks:     uint64(r.VCPU + 32),
		cpuWeight: uint64(cmp.Or(r.CPUWeight, defaultWeight)),
		ioWeight:  uint64(cmp.Or(r.IOWeight, defaultWeight)),
		cpuMicros: uint64(r.CPULimitMillis) * 1000,
		ioBytes:   uint64(r.IOLimitBytes),
	}
}

// endedEarly waits for the rest of the unit's end, which leaves the exit record: that
// tells how it ended.
func (s *Server) endedEarly(ctx context.Context, id string, w unitWatch) error {
	if _, err := w.await(ctx, phase.over, nil); err != nil {
		return err
	}
	return api.Problemf(http.StatusBadGateway, helper.CodeVMMEnded, "firecracker ended before its API socket was there").
		WithHint("journalctl --namespace=banger -u %s", unitName(id))
}

// undoLaunch stops the unit, without a lock, and then removes the jail.
func (s *Server) undoLaunch(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	err := errors.Join(stopUnit(ctx, s.units, id), s.dropNetNS(id))
	if err != nil { // a jail is not taken away from under a VMM
		return fmt.Errorf("cannot undo launch: %w", err)
	}
	return s.places.locked(id, func() error { return s.places.removeJail(id) })
}

func (s *Server) awaitUnit(ctx context.Context, id string, accept func(phase) bool) (phase, error) {
	w, err := s.units.watch(ctx, id)
	if err != nil {
		return unitGone, err
	}
	defer w.close()
	p, err := w.await(ctx, accept, nil)
	if err != nil {
		return p, fmt.Errorf("cannot wait for the end of %s: %w", unitName(id), err)
	}
	return p, nil
}

// makeNetNS makes the VM's empty network namespace and returns a path by which
// systemd can open it as long as it is held here.
func (s *Server) makeNetNS(id string, uid int) (string, error) {
	ns, err := newNetNS(uid)
	if err != nil {
		return "", err
	}
	if err := s.dropNetNS(id); err != nil {
		slog.Warn("cannot close an earlier network namespace", "id", id, "err", err)
	}
	if err := keepNetNS(id, ns); err != nil {
		return "", errors.Join(err, ns.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.netns[id] = ns
	return fmt.Sprintf("/proc/%d/fd/%d", s.pid, ns.Fd()), nil
}

func (s *Server) dropNetNS(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.netns[id]
	delete(s.netns, id)
	if ns == nil {
		return nil
	}
	return errors.Join(forgetNetNS(id), ns.Close())
}
