package agent

import (
	"context"
	"errors"
	"net/http"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
	"banger/internal/jsonhttp"
)

func TestShownAction(t *testing.T) {
	for cmdline, want := range map[string]string{
		"/usr/lib/systemd/systemd-shutdown\x00poweroff\x00--timeout\x0090000000us\x00": guest.ActionPowerOff,
		"/lib/systemd/systemd-shutdown\x00reboot\x00":                                  guest.ActionReboot,
		"systemd-shutdown\x00halt\x00":                                                 guest.ActionPowerOff,
		"systemd-shutdown\x00kexec\x00":                                                "",
		"systemd-shutdown\x00":                                                         "",
		"/sbin/init\x00poweroff\x00":                                                   "",
		"/lib/systemd/systemd\x00--switched-root\x00":                                  "",
		"init [0]\x00\x00\x00":                                                         guest.ActionPowerOff,
		"init [6]        \x00":                                                         guest.ActionReboot,
		"init [2]\x00":                                                                 "",
		"/sbin/init\x00":                                                               "",
		"":                                                                             "",
	} {
		if got := shownAction([]byte(cmdline)); got != want {
			t.Errorf("%q means %q, want %q", cmdline, got, want)
		}
	}
}

func TestSignalsToAnAgentThatIsInit(t *testing.T) {
	for sig, want := range map[os.Signal]string{
		unix.SIGUSR1: guest.ActionPowerOff, unix.SIGUSR2: guest.ActionPowerOff, unix.SIGPWR: guest.ActionPowerOff,
		unix.SIGTERM: guest.ActionReboot, unix.SIGINT: guest.ActionReboot,
	} {
		if got := signalAction(sig); got != want {
			t.Errorf("%v means %q, want %q", sig, got, want)
		}
	}
}

// waiters asks GET /v1/end n times and returns what they hear.
func waiters(ctx context.Context, c *http.Client, n int) <-chan error {
	heard := make(chan error, n)
	for range n {
		go func() {
			var i guest.Intent
			err := jsonhttp.Call(ctx, c, "GET", "http://agent/v1/end", nil, &i)
			if err == nil && i.Action != guest.ActionPowerOff {
				err = errors.New("heard " + i.Action)
			}
			heard <- err
		}()
	}
	return heard
}

func (i *intent) awaitWaiting(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		i.mu.Lock()
		waiting := i.waiting
		i.mu.Unlock()
		if waiting == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d wait, want %d", waiting, n)
		}
	}
}

func TestEveryWaiterHearsOfTheEnd(t *testing.T) {
	s := newTestAgent(t)
	c, _ := controlPort(t, s.routes())
	gone, hangUp := context.WithCancel(t.Context())
	left := waiters(gone, c, 2)
	heard := waiters(t.Context(), c, 3)
	s.intent.awaitWaiting(t, 5)
	hangUp()
	for range 2 {
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("one that hung up: %v", err)
		}
	}
	s.intent.awaitWaiting(t, 3)
	s.intent.declare("")
	s.intent.declare(guest.ActionPowerOff)
	s.intent.declare(guest.ActionReboot) // only the first counts
	s.intent.awaitTold(10 * time.Second)
	s.intent.awaitWaiting(t, 0) // they have their answer when awaitTold returns
	for range 3 {
		if err := <-heard; err != nil {
			t.Error(err)
		}
	}
	if err := <-waiters(t.Context(), c, 1); err != nil {
		t.Errorf("a late one: %v", err)
	}
}

func TestTellingIsBounded(t *testing.T) {
	i := newIntent()
	i.awaitTold(time.Hour) // nothing was declared
	i.wait()
	i.declare(guest.ActionReboot)
	i.awaitTold(time.Millisecond) // nobody listens
}

func TestAnEndThatWasAskedForIsAReboot(t *testing.T) {
	s := newTestAgent(t)
	if got := s.initEnds(); got != "" {
		t.Errorf("an agent that is pid 1 says %q", got)
	}
	s.imageInit, s.phase = true, guest.PhaseEnding
	if got := s.initEnds(); got != guest.ActionReboot {
		t.Errorf("it is %q", got)
	}
}
