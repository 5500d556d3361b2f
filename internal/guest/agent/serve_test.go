package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/guest"
)

func newTestAgent(t *testing.T) *server {
	t.Helper()
	log := testLogger(t)
	return &server{log: log, phase: guest.PhaseWaiting, init: initAgent, link: -1, spawner: &spawner{log: log}, intent: newIntent()}
}

func status(err error) int {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Status
	}
	return 0
}

func TestBadIdentityLeavesTheGuestWaiting(t *testing.T) {
	s := newTestAgent(t)
	good := guest.Identity{
		ID: "0123456789ab", Hostname: "vm", Root: guest.Root{Device: "/dev/none", FSType: "ext4"},
		SSH: guest.SSH{UserCA: "no key", HostKey: "x", HostCert: "x"},
	}
	for name, doc := range map[string]guest.Identity{"empty": {}, "keys that are none": good} {
		if _, err := s.putIdentity(doc); status(err) != 400 {
			t.Errorf("%s: %v", name, err)
		}
	}
	h, err := s.getHealth(struct{}{})
	if err != nil || h.Phase != guest.PhaseWaiting || h.Init != initAgent || h.Kernel == "" || h.BootID == "" {
		t.Errorf("health is %+v, %v", h, err)
	}
}

func TestIdentityIsTakenOnce(t *testing.T) {
	s := newTestAgent(t)
	if err := s.begin(); err != nil {
		t.Fatal(err)
	}
	if err := s.begin(); status(err) != 409 {
		t.Errorf("a second identity while one is applied: %v", err)
	}
	s = newTestAgent(t)
	if _, err := s.postShutdown(guest.Shutdown{}); err != nil {
		t.Fatal(err)
	}
	if err := s.begin(); status(err) != 409 {
		t.Errorf("an identity for an ending guest: %v", err)
	}
}

func TestFirstShutdownCounts(t *testing.T) {
	s := newTestAgent(t)
	for _, seconds := range []int{3, 60} {
		if _, err := s.postShutdown(guest.Shutdown{GraceSeconds: seconds}); err != nil {
			t.Fatal(err)
		}
	}
	if s.phase != guest.PhaseEnding || s.grace != 3*time.Second || !s.ending() {
		t.Errorf("phase %s, grace %v", s.phase, s.grace)
	}
}

func link(t *testing.T) (pid1, serving int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(pair[0]) })
	return pair[0], pair[1]
}

func TestStartInitOrdersOnce(t *testing.T) {
	for init, want := range map[string]string{initAgent: orderStay, "/sbin/init": "exec /sbin/init"} {
		pid1, serving := link(t)
		s := newTestAgent(t)
		s.link, s.phase, s.init = serving, guest.PhaseReady, init
		s.startInit()
		s.startInit()
		if err := unix.Close(serving); err != nil {
			t.Fatal(err)
		}
		if got, err := receive(pid1); err != nil || got != want {
			t.Errorf("pid 1 hears %q, %v", got, err)
		}
		if got, err := receive(pid1); !errors.Is(err, errPeerGone) {
			t.Errorf("pid 1 hears %q too, %v", got, err)
		}
		if s.imageInit != (init != initAgent) {
			t.Errorf("%s: imageInit is %v", init, s.imageInit)
		}
	}
}

func TestServingProcessLearnsThatTheInitDoesNotRun(t *testing.T) {
	pid1, serving := link(t)
	s := newTestAgent(t)
	s.link, s.init, s.imageInit = serving, "/sbin/init", true
	if err := send(pid1, saidStay); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(pid1, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	s.listenToPid1()
	if s.init != initAgent || s.imageInit {
		t.Errorf("init %q, imageInit %v", s.init, s.imageInit)
	}
	if err := unix.Close(serving); err != nil {
		t.Fatal(err)
	}
}

func TestOrdersToEnd(t *testing.T) {
	pid1, serving := link(t)
	orders := make(chan time.Duration, 1)
	if err := send(serving, orderEnd+"7"); err != nil {
		t.Fatal(err)
	}
	awaitEnd(pid1, orders)
	if grace := <-orders; grace != 7*time.Second {
		t.Errorf("grace is %v", grace)
	}
	if err := unix.Close(serving); err != nil {
		t.Fatal(err)
	}
	awaitEnd(pid1, orders)
	if _, ok := <-orders; ok {
		t.Error("a serving process that is gone gave an order")
	}
}

func TestSoundDisks(t *testing.T) {
	dir := t.TempDir()
	if soundDisks(dir) {
		t.Error("nothing is known of any disk")
	}
	count := func(disk, n string) {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, disk), 0o700),
			os.WriteFile(filepath.Join(dir, disk, "errors_count"), []byte(n+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	count("vda", "0")
	count("vdb", "0")
	if !soundDisks(dir) {
		t.Error("two disks without errors")
	}
	count("vdb", "1")
	if soundDisks(dir) {
		t.Error("one with an error")
	}
}
