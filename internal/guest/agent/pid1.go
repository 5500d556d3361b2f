package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// Descriptors the serving process is born with.
const (
	controlFD = 3 // listens on guest.ControlPort
	sshFD     = 4 // listens on guest.SSHPort
	pid1FD    = 5 // SOCK_SEQPACKET to pid 1
)

// ServeArg and SFTPArg are the first arguments that choose what the program
// is; without one it is pid 1 of an initrd.
const (
	ServeArg = "serve"
	SFTPArg  = "sftp"
)

// Orders from the serving process to pid 1, one per packet, and its answers.
const (
	orderExec = "exec " // + path: become the image's init
	orderStay = "stay"  // be the init
	orderEnd  = "end "  // + seconds of grace: end all processes and reboot

	saidStay = "staying" // pid 1's answer when it could not exec
	saidEnd  = "ending " // + action: pid 1 is about to end all processes
)

// Pid1 is the main function of pid 1. It returns only on failure.
//
// Both ports are open before the serving process runs, so that a host which
// is already knocking is heard by the kernel while Go still starts.
func Pid1() error {
	if os.Getpid() != 1 {
		return errors.New("banger-agent is pid 1 of a banger guest; there is nothing to run by hand")
	}
	// The thread that execs the image's init must be the one that stops
	// sharing the root directory with the serving process, see becomeInit.
	runtime.LockOSThread()

	if err := mountFirst(); err != nil {
		return err
	}
	log := newLogger()
	if err := loadModules(moduleDir); err != nil {
		log.Warn(err.Error())
	}
	link, err := startServing()
	if err == nil {
		err = obey(link, log)
	}
	if err != nil {
		log.Error("giving up", "err", err)
	}
	reboot(log)
	return err
}

// mountFirst mounts what both processes need before there is a root.
func mountFirst() error {
	if err := os.MkdirAll("/proc", 0o555); err != nil {
		return fmt.Errorf("cannot make /proc: %w", err)
	}
	for _, m := range firstMounts {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("cannot mount %s: %w", m.target, err)
		}
	}
	return nil
}

// startServing opens the ports and starts the serving process. The two share
// one root and working directory (CLONE_FS): when that process enters the
// image's root, pid 1 is there too, without a word or a system call.
func startServing() (link int, err error) {
	control, err := listenVsock(guest.ControlPort)
	if err != nil {
		return -1, err
	}
	ssh, err := listenVsock(guest.SSHPort)
	if err != nil {
		return -1, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("cannot make a socket pair: %w", err)
	}
	_, err = forkWithSlack(agentSlack, "/proc/self/exe", []string{"banger-agent", ServeArg}, &syscall.ProcAttr{
		Env:   []string{},
		Files: []uintptr{0, 1, 2, controlFD: uintptr(control), sshFD: uintptr(ssh), pid1FD: uintptr(pair[1])},
		Sys:   &syscall.SysProcAttr{Cloneflags: syscall.CLONE_FS, Setsid: true},
	})
	if err != nil {
		return -1, fmt.Errorf("cannot start the serving process: %w", err)
	}
	for _, fd := range []int{control, ssh, pair[1]} {
		_ = unix.Close(fd) // the serving process has them
	}
	return pair[0], nil
}

// obey waits for the first order and follows it. It returns only on failure.
func obey(link int, log *slog.Logger) error {
	order, err := receive(link)
	if err != nil {
		return err
	}
	if path, ok := strings.CutPrefix(order, orderExec); ok {
		err := becomeInit(path)
		log.Error("the image's init does not run, staying pid 1", "init", path, "err", err)
		if err := send(link, saidStay); err != nil {
			return err
		}
		order = orderStay
	}
	if order != orderStay { // asked to end before there was an identity
		return fmt.Errorf("order was %q", order)
	}
	beInit(link, log)
	return nil
}

// becomeInit replaces pid 1 as the kernel would have started the image's
// init. It returns only on failure.
func becomeInit(path string) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("cannot unshare the root directory: %w", err)
	}
	err := unix.Exec(path, append([]string{path}, os.Args[1:]...), os.Environ())
	return fmt.Errorf("cannot execute %s: %w", path, err)
}

func send(link int, s string) error {
	if err := unix.Sendto(link, []byte(s), unix.MSG_NOSIGNAL, nil); err != nil {
		return fmt.Errorf("cannot talk to the other process: %w", err)
	}
	return nil
}

// receive blocks for one packet. A closed other end is an error.
func receive(link int) (string, error) {
	buf := make([]byte, 8192)
	for {
		n, err := unix.Read(link, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return "", fmt.Errorf("cannot hear the other process: %w", err)
		case n == 0:
			return "", errPeerGone
		}
		return string(buf[:n]), nil
	}
}

var errPeerGone = errors.New("the other process is gone")
