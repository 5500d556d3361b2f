package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/paths"
	"banger/internal/store"
)

// startRun is the state that the phases of one start share.
type startRun struct {
	m    *Manager
	vm   *store.VM
	jail jail
	// again: an earlier start may have left something.
	again bool

	kernel      *store.Kernel
	base        string // of the image, relative to the state directory
	overlay     string // relative to the state directory
	overlayMade bool   // by this run, so that only this run may remove it
	clean       bool   // the last guest left its disks in order
	machine     machine
	repair      bool // disks, even if that loses files
	clock       *startClock
	launched    bool
	ended       <-chan helper.Exit // the VMM's end, from before it was launched
	forgetEnd   func()             // no longer waits for it
}

// startSteps is the start of a VM. Names, order, stages and details are part
// of the interface, see docs/architecture.md.
var startSteps = []step[*startRun]{
	{name: "preflight", stage: "preflight", detail: "checking host prerequisites", run: (*startRun).preflight},
	{name: "cleanup_runtime", run: (*startRun).cleanupRuntime},
	{name: "bridge", run: (*startRun).ensureBridge},
	{name: "socket_dir", run: (*startRun).checkJailParents},
	{name: "prepare_sockets", run: (*startRun).prepareSockets},
	{name: "system_overlay", stage: "prepare_rootfs", detail: "preparing system overlay",
		attrs: func(r *startRun) []any { return []any{"overlay_path", r.overlay} },
		run:   (*startRun).makeOverlay, undo: (*startRun).removeOverlay},
	{name: "dm_snapshot", stage: "prepare_rootfs", detail: "creating root filesystem snapshot",
		attrs: func(r *startRun) []any { return []any{"dm_name", "fc-rootfs-" + r.vm.ID} },
		run:   (*startRun).attach, undo: (*startRun).detach},
	{name: "fsck_snapshot", run: (*startRun).checkRoot},
	{name: "patch_root_overlay", stage: "prepare_rootfs", detail: "writing guest configuration",
		run: (*startRun).writeIdentity},
	{name: "prepare_host_features", stage: "prepare_host_features", detail: "preparing host-side vm features",
		run: (*startRun).prepareFeatures, undo: (*startRun).cleanupFeatures},
	{name: "tap", run: (*startRun).reserveTap, undo: (*startRun).removeTap},
	{name: "metrics_file", attrs: func(r *startRun) []any { return []any{"metrics_path", r.metricsPath()} },
		run: (*startRun).chooseMetrics},
	{name: "firecracker_binary", run: (*startRun).checkBinaries},
	{name: "firecracker_launch", stage: "boot_firecracker", detail: "starting firecracker",
		attrs: func(r *startRun) []any {
			return []any{"log_path", "journal:" + UnitOf(r.vm.ID), "metrics_path", r.metricsPath()}
		},
		run: (*startRun).launchAndBoot, undo: (*startRun).kill},
	{name: "socket_access", attrs: func(r *startRun) []any { return []any{"api_socket", r.jail.root + paths.JailAPI} },
		run: (*startRun).checkAPI},
	{name: "vsock_access", attrs: func(r *startRun) []any {
		return []any{"vsock_path", r.jail.root + paths.JailVsock, "vsock_cid", guestCID}
	}, run: (*startRun).checkVsock},
	{name: "wait_vsock_agent", stage: "wait_vsock_agent", detail: "waiting for guest vsock agent",
		run: (*startRun).waitAgent},
	{name: "post_start_features", stage: "wait_guest_ready", detail: "waiting for guest services",
		run: (*startRun).postStart, undo: (*startRun).cleanupFeatures},
	{name: "persist", stage: "finalize", detail: "saving vm state", run: (*startRun).persist},
}

// Start boots a VM and returns once commands can be run in it. When it fails
// the VM is left in the state failed, with the reason, and holds nothing.
//
// With repair, disks that cannot be mended without losing files are mended all
// the same.
func (m *Manager) Start(ctx context.Context, id string, repair bool, rep Reporter) error {
	return m.locked(ctx, id, func(v *store.VM) error {
		if v.State == api.StatePaused {
			return api.Problemf(http.StatusConflict, api.CodePaused, "cannot start VM %q: it is paused", v.Name).
				WithHint("let it go on with `banger vm resume %s`", v.Name)
		}
		if v.State == api.StateRunning {
			return api.Conflict("cannot start VM %q: it is running", v.Name)
		}
		return m.startWith(ctx, v, repair, rep)
	})
}

// start needs the VM's lock.
func (m *Manager) start(ctx context.Context, v *store.VM, rep Reporter) error {
	return m.startWith(ctx, v, false, rep)
}

func (m *Manager) startWith(ctx context.Context, v *store.VM, repair bool, rep Reporter) error {
	log := m.Log.With("vm", v.ID, "name", v.Name)
	ctx, cancel := context.WithCancelCause(ctx)
	m.starting.Store(v.ID, cancel)
	defer func() {
		m.starting.Delete(v.ID)
		cancel(nil)
	}()
	m.leaveGuest(v.ID) // what the guest of an earlier run wanted is over
	if err := removeMark(m.pauseMark(v.ID)); err != nil {
		return err
	}
	again := !v.StartedAt.IsZero()
	v.StartedAt, v.HostBoot, v.Guest, v.Timing, v.Stale = time.Now().UTC(), m.boot, nil, nil, nil
	if err := m.setState(ctx, v, api.StateStarting, ""); err != nil {
		return err
	}
	ctx, clock := newStartClock(ctx, m.StartTimeout)
	defer clock.stop()
	r := &startRun{m: m, vm: v, again: again, repair: repair, clock: clock, forgetEnd: func() {},
		base:    filepath.Join("images", v.ImageID, "rootfs.ext4"),
		overlay: filepath.Join("vms", v.ID, "overlay.cow")}
	defer func() { r.forgetEnd() }()
	begun := time.Now()
	times, err := runSteps(ctx, log, rep, startSteps, r)
	times = append(times, api.PhaseTime{Phase: api.PhaseTotal, Milliseconds: milliseconds(time.Since(begun))})
	var timingErr error
	if v.Timing, timingErr = json.Marshal(times); timingErr != nil {
		log.WarnContext(ctx, "cannot keep how long the start took", "error", timingErr)
	}
	if err == nil {
		m.attend(v)
		// It runs: whoever cancels now is too late.
		if err := m.Store.UpdateVM(context.WithoutCancel(ctx), v); err != nil {
			log.WarnContext(ctx, "cannot keep how long the start took", "error", err)
		}
		return nil
	}
	failure := startFailure(ctx, v, err)
	// The caller may be gone; the record must tell the truth all the same.
	if saveErr := m.setState(context.WithoutCancel(ctx), v, api.StateFailed, failure.Detail); saveErr != nil {
		return errors.Join(failure, saveErr)
	}
	return failure
}

// startFailure puts the error of a pipeline into a person's words and keeps
// the code and hint of the problem at its root.
func startFailure(ctx context.Context, v *store.VM, err error) *api.Problem {
	p := &api.Problem{Status: 500, Code: api.CodeInternal}
	if root, ok := errors.AsType[*api.Problem](err); ok {
		p = root.WithHint("%s", root.Hint)
	}
	cause := err.Error()
	if reason := context.Cause(ctx); reason != nil {
		said, ended := errors.Is(err, reason), errors.Is(err, ctx.Err())
		if ended && !said {
			cause = fmt.Sprintf("%v (%v)", reason, err)
		}
		if (said || ended) && errors.Is(reason, ErrCancelled) {
			p.Status, p.Code = 499, api.CodeCancelled
		}
	}
	p.Detail = fmt.Sprintf("cannot start VM %q: %s", v.Name, cause)
	if p.Hint == "" && p.Code != api.CodeCancelled {
		p.Hint = fmt.Sprintf("`journalctl --namespace=banger -u %s` shows its console; `banger doctor` checks the host", UnitOf(v.ID))
	}
	return p
}

// abs turns a path relative to the state directory into an absolute one.
func (r *startRun) abs(rel string) string { return filepath.Join(r.m.StateDir, rel) }

func (r *startRun) metricsPath() string { return r.jail.root + paths.JailMetrics }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
