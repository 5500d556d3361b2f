package agent

import (
	"bytes"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"banger/internal/guest"
)

// tellTimeout bounds how long an ending guest is held up for the host to hear
// of it.
const tellTimeout = 2 * time.Second

// intent is what the guest does next, told to everybody who waits for it.
type intent struct {
	declared chan struct{} // closed when action is known
	told     chan struct{} // closed when all who wait have heard, one at least

	mu      sync.Mutex
	action  string // guarded by mu; "" until declared
	waiting int    // guarded by mu
}

func newIntent() *intent {
	return &intent{declared: make(chan struct{}), told: make(chan struct{})}
}

// declare tells it. Only the first counts; "" is nothing to tell.
func (i *intent) declare(action string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.action != "" || action == "" {
		return
	}
	i.action = action
	close(i.declared)
	// Where nobody waits the host's daemon is being restarted: its next question
	// is the one that is answered.
}

// wait returns an answer for one more who waits.
func (i *intent) wait() pending {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.waiting++
	return pending{ready: i.declared, answer: i.answer, over: i.leave}
}

func (i *intent) answer() any {
	i.mu.Lock()
	defer i.mu.Unlock()
	return guest.Intent{Action: i.action}
}

func (i *intent) leave() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.waiting--
	if i.action == "" || i.waiting > 0 {
		return
	}
	select {
	case <-i.told:
	default:
		close(i.told)
	}
}

// awaitTold returns when all have heard, or had time to. Where nothing was
// declared there is nothing to wait for.
func (i *intent) awaitTold(timeout time.Duration) {
	select {
	case <-i.declared:
	default:
		return
	}
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-i.told:
	case <-t.C:
	}
}

func (s *server) getEnd(_ []byte) (any, error) { return s.intent.wait(), nil }

// initEnds tells what the image's init is doing to the guest, "" if it goes on
// or nobody can tell.
func (s *server) initEnds() string {
	s.mu.Lock()
	imageInit, asked, signalled := s.imageInit, s.phase == guest.PhaseEnding, s.signalled
	s.mu.Unlock()
	switch {
	case !imageInit:
		return "" // pid 1 is the agent, which says so itself
	case asked:
		return guest.ActionReboot // as end has it
	}
	cmdline, err := os.ReadFile("/proc/1/cmdline")
	if err != nil {
		return ""
	}
	if action := shownAction(cmdline); action != "" {
		return action
	}
	return signalled.action()
}

// shownAction reads what an ending init shows as its command line: systemd has
// become its own program for that, sysvinit shows its run level.
func shownAction(cmdline []byte) string {
	argv := strings.Split(string(bytes.TrimRight(cmdline, "\x00")), "\x00")
	if path.Base(argv[0]) == "systemd-shutdown" && len(argv) > 1 {
		switch argv[1] {
		case "poweroff", "halt", "exit":
			return guest.ActionPowerOff
		case "reboot":
			return guest.ActionReboot
		}
		return "" // another kernel or another root goes on in this guest
	}
	switch name, level, _ := strings.Cut(strings.TrimSpace(argv[0]), " "); {
	case path.Base(name) != "init":
		return ""
	case level == "[0]":
		return guest.ActionPowerOff
	case level == "[6]":
		return guest.ActionReboot
	}
	return ""
}

// watchInit prepares for an init that shows nothing of what it does: busybox's,
// which learns it by a signal. mu is held.
func (s *server) watchInit(init string) {
	real, err := filepath.EvalSymlinks(init)
	if err != nil || !strings.HasPrefix(filepath.Base(real), "busybox") {
		return
	}
	if s.signalled, err = countPid1Signals(); err != nil {
		s.log.Warn("the host will not know a poweroff of this guest from a reboot", "err", err)
	}
}
