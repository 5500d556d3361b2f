package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"banger/internal/paths"
)

const (
	kvmNode          = "/dev/kvm"
	kvmGetAPIVersion = 0xae00 // ioctl, see linux/kvm.h
	kvmAPIVersion    = 12     // since 2007

	// A working KVM runs the test guest in a millisecond.
	tryTime   = 5 * time.Second
	endTime   = 5 * time.Second
	tryMemory = 128 << 20
	tryTasks  = 32
	tryID     = "host" // in the name of the unit
)

// openKVM is the look that every launch takes: a microsecond, not a guest.
func openKVM() (*os.File, error) {
	kvm, err := os.OpenFile(kvmNode, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if v, err := unix.IoctlRetInt(int(kvm.Fd()), kvmGetAPIVersion); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is not KVM: %w", kvmNode, err), kvm.Close())
	} else if v != kvmAPIVersion {
		return nil, errors.Join(fmt.Errorf("%s has API version %d, not %d", kvmNode, v, kvmAPIVersion), kvm.Close())
	}
	return kvm, nil
}

// tryKVM has a test guest run by a process that has no right but the open KVM it is
// handed. Callers come one at a time.
func (s *Server) tryKVM(ctx context.Context) (err error) {
	kvm, err := openKVM()
	if err != nil {
		return err
	}
	defer kvm.Close()
	end := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, endTime)
		defer cancel()
		return errors.Join(stopUnit(ctx, s.trials, tryID), s.trials.forget(ctx, tryID))
	}
	if err := end(ctx); err != nil { // a helper before this one may have left it
		return err
	}
	defer func() { err = errors.Join(err, end(context.WithoutCancel(ctx))) }()
	v, said, err := runToEnd(ctx, s.trials, tryID, []string{paths.LibexecDir + "/bangerd", "try-kvm"}, tryTime,
		set("Description", "banger trial of KVM"),
		set("DynamicUser", true), // never root's, whatever systemd has read
		set("StandardInputFileDescriptor", dbus.UnixFD(kvm.Fd())),
		set("MemoryMax", uint64(tryMemory)),
		set("TasksMax", uint64(tryTasks)))
	if err != nil {
		return fmt.Errorf("cannot run a test guest: %w", err)
	}
	return judgeTrial(v, said)
}

func judgeTrial(v verdict, said string) error {
	switch {
	case v.Code != exited:
		return fmt.Errorf("a test guest did not come to its end within %s (%s)", tryTime, v.Result)
	case v.Status != 0 && said == "":
		return fmt.Errorf("cannot try a test guest: its unit failed (status %d)", v.Status)
	case v.Status != 0:
		return errors.New(said)
	}
	return nil
}
