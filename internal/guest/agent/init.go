package agent

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// killTimeout bounds the wait for processes that were killed: one that hangs
// in the kernel must not keep the guest up.
const killTimeout = 5 * time.Second

// beInit is the init of an image that has none: it reaps what is orphaned,
// and ends all processes in order when it is asked to, by the serving process
// or by one of the signals that reboot and poweroff send to pid 1. It returns
// when all are gone.
func beInit(link int, log *slog.Logger) {
	err := mountAt(mount{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""})
	if err != nil {
		log.Warn(err.Error())
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil { // Ctrl-Alt-Del becomes a SIGINT
		log.Warn("cannot take over ctrl-alt-del", "err", err)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPWR)
	orders := make(chan time.Duration, 1)
	go awaitEnd(link, orders)
	gone := make(chan struct{})
	go reap(gone)

	grace, action := defaultGrace, guest.ActionReboot
	select {
	case asked, ok := <-orders:
		if !ok {
			log.Error("the serving process ended, so nobody can reach this guest any more")
		}
		grace = asked
	case sig := <-signals:
		action = signalAction(sig)
		log.Info("ending", "signal", sig)
	case <-gone: // not even the serving process is left
	}
	_ = send(link, saidEnd+action) // an error means the serving process is gone
	endAll(grace, gone, log)
}

// signalAction is what the programs reboot, poweroff and halt mean with a signal
// to pid 1. The guest reboots in any case, which ends its VMM.
func signalAction(sig os.Signal) string {
	switch sig {
	case unix.SIGUSR1, unix.SIGUSR2, unix.SIGPWR:
		return guest.ActionPowerOff
	default:
		return guest.ActionReboot
	}
}

// awaitEnd passes the order to end on. When the serving process is gone, or
// says something else, it closes orders.
func awaitEnd(link int, orders chan<- time.Duration) {
	order, err := receive(link)
	seconds, isEnd := strings.CutPrefix(order, orderEnd)
	n, numErr := strconv.Atoi(seconds)
	if err != nil || !isEnd || numErr != nil {
		close(orders)
		return
	}
	orders <- time.Duration(n) * time.Second
}

// reap collects processes and closes gone when there are none left.
func reap(gone chan<- struct{}) {
	for {
		_, err := unix.Wait4(-1, nil, 0, nil)
		if errors.Is(err, unix.ECHILD) {
			close(gone)
			return
		}
	}
}

// endAll ends every process but this one.
func endAll(grace time.Duration, gone <-chan struct{}, log *slog.Logger) {
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, killTimeout}} {
		if err := unix.Kill(-1, step.signal); err != nil && !errors.Is(err, unix.ESRCH) {
			log.Warn("cannot signal all processes", "signal", step.signal, "err", err)
		}
		timeout := time.NewTimer(step.wait)
		select {
		case <-gone:
			return
		case <-timeout.C:
		}
	}
	log.Warn("some processes could not be killed")
}
