package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/guest"
	"banger/internal/helper"
	"banger/internal/paths"
)

const bootArgs = "console=ttyS0 quiet loglevel=3 reboot=k panic=1 i8042.noaux i8042.nomux i8042.dumbkbd"

// guestCID is the same in every VM: each has a vsock of its own.
const guestCID = 3

// launchAndBoot starts the VMM and boots the guest.
func (r *startRun) launchAndBoot(ctx context.Context) error {
	r.launched = true // from here on there may be something to kill
	if err := r.launchVMM(ctx); err != nil {
		return err
	}
	if r.m.Log.Enabled(ctx, slog.LevelDebug) {
		r.m.Log.DebugContext(ctx, "firecracker_started", "vm", r.vm.ID, "pid", unitPID(r.vm.ID))
	}
	if err := r.awaitListen(ctx); err != nil {
		return err
	}
	return r.orItsEnd(r.boot(ctx))
}

// No event tells of listen(2), which follows the bind that made the socket's name. A
// program that never listens is not asked for that often.
const (
	listenPause     = 2 * time.Millisecond
	listenPauseMost = 50 * time.Millisecond
	listenTime      = 30 * time.Second
)

// awaitListen returns when the VMM takes calls, or ended.
func (r *startRun) awaitListen(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, listenTime, fmt.Errorf("firecracker does not listen within %s", listenTime))
	defer cancel()
	for pause := listenPause; ; pause = min(2*pause, listenPauseMost) {
		c, err := r.jail.dialAPI(ctx)
		if err == nil {
			return c.Close()
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return r.orItsEnd(err)
		}
		select {
		case e := <-r.ended:
			return errors.New(describe(e))
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// boot configures the VMM, hands its devices over and starts the guest.
func (r *startRun) boot(ctx context.Context) error {
	v := r.vm
	fc := firecracker.New(r.jail.dialAPI, &r.m.calls)
	defer fc.Close()
	if err := fc.SetMetrics(ctx, paths.JailMetrics); err != nil {
		return err
	}
	if err := fc.SetMachine(ctx, firecracker.Machine{VCPU: v.VCPU, MemoryMiB: v.MemoryMiB}); err != nil {
		return err
	}
	if err := fc.SetBoot(ctx, firecracker.Boot{Kernel: paths.JailKernel, Initrd: paths.JailInitrd, Args: bootArgs}); err != nil {
		return err
	}
	for _, d := range r.machine.drives {
		if err := fc.AddDrive(ctx, d); err != nil {
			return err
		}
	}
	for _, c := range r.machine.cards {
		if err := fc.AddCard(ctx, c); err != nil {
			return err
		}
	}
	if err := fc.SetVsock(ctx, firecracker.Vsock{CID: guestCID, Path: paths.JailVsock}); err != nil {
		return err
	}
	if err := r.m.Helper.Handover(ctx, v.ID); err != nil {
		return err
	}
	return fc.Start(ctx)
}

func (r *startRun) launchVMM(ctx context.Context) error {
	r.ended, r.forgetEnd = r.m.exits.waitForNew(r.vm.ID)
	resend := false
	for {
		kernel, initrd, err := r.m.Kernels.Blobs(ctx, r.kernel, resend)
		if err != nil {
			return err
		}
		_, err = r.m.Helper.Launch(ctx, helper.LaunchRequest{ID: r.vm.ID, Kernel: kernel, Initrd: initrd,
			VCPU: r.vm.VCPU, MemoryMiB: r.vm.MemoryMiB, CPUWeight: r.vm.CPUWeight, IOWeight: r.vm.IOWeight,
			CPULimitMillis: r.vm.CPULimit, IOLimitBytes: r.vm.IOLimit})
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Code == helper.CodeBlobUnknown && !resend {
			resend = true
			continue
		} else if ok && p.Code == helper.CodeVMMEnded {
			// vm.launch removed the record of the run before, so this is about this one.
			if e, none := readExit(r.m.exits.dir, r.vm.ID); none == nil {
				return api.Problemf(p.Status, p.Code, "%s: %s", p.Detail, describe(e)).WithHint("%s", p.Hint)
			}
		}
		return err
	}
}

// endTime is how long the verdict on a VMM may take to come after its sockets
// have gone dead.
const endTime = 5 * time.Second

// orItsEnd prefers the words of the VMM's end, if that is what err is about.
func (r *startRun) orItsEnd(err error) error {
	if err == nil {
		return nil
	}
	// A unit is not empty before the clean-up in it has ended; a socket tells at
	// once that nobody listens any more.
	if runs, statErr := unitRuns(r.vm.ID); statErr != nil || runs && !hungUp(err) {
		return err
	}
	select {
	case e := <-r.ended:
		return errors.New(describe(e))
	case <-time.After(endTime):
		return err
	}
}

func hungUp(err error) bool {
	return slices.ContainsFunc([]error{unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE, io.EOF, io.ErrUnexpectedEOF},
		func(end error) bool { return errors.Is(err, end) })
}

func (r *startRun) kill(ctx context.Context) error {
	if !r.launched {
		return nil
	}
	return r.m.Helper.Kill(ctx, r.vm.ID)
}

// checkAPI makes sure that the owner reaches the VMM, and nobody else's: the
// connection checks its peer's uid.
func (r *startRun) checkAPI(ctx context.Context) error {
	c, err := r.jail.dialAPI(ctx)
	if err != nil {
		return r.orItsEnd(err)
	}
	return c.Close()
}

// checkVsock does the same for the socket through which the guest is reached.
func (r *startRun) checkVsock(ctx context.Context) error {
	c, err := r.jail.dial(ctx, paths.JailVsock)
	if err != nil {
		return r.orItsEnd(err)
	}
	return c.Close()
}

// retryAgent is the pause between two attempts to reach the agent. A guest
// whose vsock driver is not up yet makes the attempt itself wait, so this only
// spans the moment between driver and listener.
const retryAgent = 5 * time.Millisecond

// waitAgent gives the guest its identity as soon as the agent listens and
// returns when sessions work, or when the VMM ends.
func (r *startRun) waitAgent(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case e := <-r.ended:
			cancel(fmt.Errorf("%s while the guest was booting", describe(e)))
		case <-ctx.Done():
		}
	}()
	agent := r.jail.agent()
	defer agent.Close()
	for {
		err := r.identify(ctx, agent)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !errors.Is(err, guest.ErrRefused) {
			return r.orItsEnd(err)
		}
		select {
		case <-time.After(retryAgent):
		case <-ctx.Done():
		}
	}
}

func (r *startRun) identify(ctx context.Context, agent *guest.Client) error {
	// The moment of sending: the guest sets its clock by it.
	doc := r.machine.guest
	doc.UnixNano = time.Now().UnixNano()
	doc.Entropy = make([]byte, 64)
	_, _ = rand.Read(doc.Entropy) // never fails, see crypto/rand
	h, err := agent.SetIdentity(ctx, doc)
	if err != nil {
		return err
	}
	r.vm.Guest = &api.Guest{Kernel: h.Kernel, BootID: h.BootID, Init: h.Init, Agent: h.Version}
	return nil
}

func (r *startRun) postStart(ctx context.Context) error {
	return r.m.each(func(c capability) error { return c.postStart(ctx, r.vm) })
}

func (r *startRun) persist(ctx context.Context) error {
	r.m.touch(r.vm.ID)
	return r.m.setState(ctx, r.vm, api.StateRunning, "")
}
