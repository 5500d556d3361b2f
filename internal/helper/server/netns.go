package server

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const threadNetNS = "/proc/thread-self/ns/net"

// newNetNS makes a network namespace with nothing in it but the tap of a VM.
// It has no name and no mount: it lives, and the tap in it, as long as the
// returned descriptor or a process in it.
func newNetNS(uid int) (ns *os.File, err error) {
	err = elsewhere(func(*os.File) error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if ns, err = os.Open(threadNetNS); err != nil {
			return err
		}
		return makeTap(nicName, uid)
	})
	if err != nil {
		if ns != nil {
			err = errors.Join(err, ns.Close())
		}
		return nil, fmt.Errorf("cannot make network namespace: %w", err)
	}
	return ns, nil
}

// inNetNS calls f in another network namespace, with the one it came from.
func inNetNS(ns *os.File, f func(home *os.File) error) error {
	return elsewhere(func(home *os.File) error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f(home)
	})
}

// elsewhere calls f on a thread whose network namespace f may change.
func elsewhere(f func(home *os.File) error) error {
	done := make(chan error, 1)
	go func() {
		// Only this thread enters the namespace. If it cannot come back, the
		// goroutine ends with the thread still locked, and the runtime
		// throws the thread away.
		runtime.LockOSThread()
		home, err := os.Open(threadNetNS)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = f(home)
		if backErr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); backErr != nil {
			err = errors.Join(err, backErr)
		} else {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, home.Close())
	}()
	return <-done
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

// systemd keeps the descriptors of namespaces that are held here, so that a
// helper that is restarted between vm.launch and vm.handover has them again.
const keptPrefix = "netns-"

// Keep takes back what systemd kept over a restart, by the names it was given.
func (s *Server) Keep(files []*os.File) {
	for _, f := range files {
		id, ok := strings.CutPrefix(f.Name(), keptPrefix)
		if !ok || checkID(id) != nil {
			slog.Warn("closing an unknown descriptor", "name", f.Name(), "err", f.Close())
			continue
		}
		s.netns[id] = f
	}
}

func keepNetNS(id string, ns *os.File) error {
	return notifySystemd("FDSTORE=1\nFDNAME="+keptPrefix+id, int(ns.Fd()))
}

func forgetNetNS(id string) error { return notifySystemd("FDSTOREREMOVE=1\nFDNAME=" + keptPrefix + id) }

func notifySystemd(state string, fds ...int) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" { // not started by systemd: a test
		return nil
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot reach systemd: %w", err)
	}
	err = unix.Sendmsg(socket, []byte(state), rights, &unix.SockaddrUnix{Name: path}, unix.MSG_NOSIGNAL)
	if err = errors.Join(err, unix.Close(socket)); err != nil {
		return fmt.Errorf("cannot tell systemd what to keep: %w", err)
	}
	return nil
}
