package server

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// newNetNS makes an empty network namespace. It has no name and no mount: it
// lives as long as the returned descriptor or a process in it.
func newNetNS() (ns *os.File, err error) {
	type result struct {
		ns  *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		// Only this thread enters the namespace. If it cannot come back, the
		// goroutine ends with the thread still locked, and the runtime
		// throws the thread away.
		runtime.LockOSThread()
		ns, back, err := makeNetNS()
		if back {
			runtime.UnlockOSThread()
		}
		done <- result{ns, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("cannot make network namespace: %w", r.err)
	}
	return r.ns, nil
}

const threadNetNS = "/proc/thread-self/ns/net"

func makeNetNS() (ns *os.File, back bool, err error) {
	old, err := os.Open(threadNetNS)
	if err != nil {
		return nil, true, err
	}
	defer old.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, true, err
	}
	ns, err = os.Open(threadNetNS)
	if backErr := unix.Setns(int(old.Fd()), unix.CLONE_NEWNET); backErr != nil {
		if ns != nil {
			err = errors.Join(err, ns.Close())
		}
		return nil, false, errors.Join(err, backErr)
	}
	return ns, true, err
}

// enterHostNetNS moves the calling thread, to which the caller must be locked,
// into the host's network namespace.
func enterHostNetNS() error {
	ns, err := os.Open("/proc/1/ns/net")
	if err != nil {
		return fmt.Errorf("cannot open the host's network namespace: %w", err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("cannot enter the host's network namespace: %w", err)
	}
	return nil
}
