package vm

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/helper"
)

func TestStartHasItsNineteenPhases(t *testing.T) {
	want := []string{"preflight", "cleanup_runtime", "bridge", "socket_dir", "prepare_sockets", "system_overlay",
		"dm_snapshot", "fsck_snapshot", "patch_root_overlay", "prepare_host_features", "tap", "metrics_file",
		"firecracker_binary", "firecracker_launch", "socket_access", "vsock_access", "wait_vsock_agent",
		"post_start_features", "persist"}
	var got []string
	for _, s := range startSteps {
		got = append(got, s.name)
		if (s.stage == "") != (s.detail == "") {
			t.Errorf("%s has a stage %q and the detail %q", s.name, s.stage, s.detail)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("phases %v", got)
	}
}

// TestStartUpToTheLaunch looks at what a VM with everything asks for.
func TestStartUpToTheLaunch(t *testing.T) {
	h := &fakeHelper{fail: map[string]error{"launch": errors.New("no")}}
	m := open(t, t.TempDir(), h, &fakeKernels{})
	disks := &fakeDisks{}
	m.Disks = disks
	size := int64(1 << 30)
	v, err := m.Create(t.Context(), api.VMSpec{Name: "a", DiskBytes: &size,
		CPUWeight: new(50), IOWeight: new(200), CPULimitMillis: new(1500), IOLimitBytes: &size})
	if err != nil {
		t.Fatal(err)
	}
	start := func() {
		t.Helper()
		h.calls = nil
		if err := m.Start(t.Context(), v.ID, false, &stages{}); err == nil {
			t.Fatal("it started")
		}
	}
	start()
	if want := []string{"reserve", "bridge", "attach", "attach", "launch", "kill", "cleanup"}; !slices.Equal(h.calls, want) {
		t.Errorf("first start: %v, want %v", h.calls, want)
	}
	if r := h.launched; r.CPUWeight != 50 || r.IOWeight != 200 || r.CPULimitMillis != 1500 || r.IOLimitBytes != size {
		t.Errorf("launched with %+v", r)
	}
	if want := []string{"create work.ext4"}; !slices.Equal(disks.made, want) {
		t.Errorf("disks: %v", disks.made)
	}
	// The work disk outlives the failed start, so it is checked; the overlay
	// was this run's own and is new again.
	start()
	if want := []string{"reserve", "kill", "cleanup", "bridge", "attach", "attach", "fsck work", "launch", "kill", "cleanup"}; !slices.Equal(h.calls, want) {
		t.Errorf("second start: %v, want %v", h.calls, want)
	}
}

func TestGuestIsToldOfNetworkAndDisk(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	size := int64(1 << 30)
	v, err := m.Create(t.Context(), api.VMSpec{Name: "a", DiskBytes: &size})
	if err != nil {
		t.Fatal(err)
	}
	v.Slot = 7
	r := &startRun{m: m, vm: v}
	if err := errors.Join(os.MkdirAll(m.dir(v), 0o700), r.writeIdentity(t.Context())); err != nil {
		t.Fatal(err)
	}
	n := r.machine.guest.Network
	if n == nil || n.Address != "10.9.0.9/24" || n.Gateway != "10.9.0.1" || n.MAC != "02:fc:0a:09:00:09" ||
		!slices.Equal(n.DNS, []string{"10.9.0.1"}) || !slices.Equal(n.Search, []string{"vm"}) {
		t.Errorf("network %+v", n)
	}
	if c := r.machine.cards; len(c) != 1 || c[0].MAC != n.MAC || c[0].Tap != "tap0" {
		t.Errorf("cards %+v", c)
	}
	mounts := r.machine.guest.Mounts
	if len(r.machine.drives) != 2 || len(mounts) != 1 || mounts[0].Path != "/root" || !mounts[0].Fill {
		t.Errorf("drives %+v, mounts %+v", r.machine.drives, mounts)
	}
}

func TestChangesReachARunningVM(t *testing.T) {
	h := &fakeHelper{}
	m := open(t, t.TempDir(), h, &fakeKernels{})
	names := &fakeNames{}
	m.Names = names
	old, err := m.Create(t.Context(), api.VMSpec{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	old.Slot = 7
	now := *old
	now.Name, now.NAT, now.Network = "b", true, "lan"
	for _, c := range m.capabilities() {
		if _, err := c.applyChange(t.Context(), old, &now); err != nil {
			t.Errorf("%s: %v", c.name(), err)
		}
	}
	if _, there := names.names["a"]; there || names.names["b"] != netip.MustParseAddr("10.9.0.9") {
		t.Errorf("names %v", names.names)
	}
	want := helper.GuestNetwork{ID: old.ID, NAT: true, Group: "lan"}
	if len(h.policies) != 1 || h.policies[0].Whole || h.policies[0].Guests[0] != want {
		t.Errorf("policies %+v", h.policies)
	}
	smaller := *old
	old.DiskBytes, smaller.DiskBytes = 2<<30, 1<<30
	if _, err := (workDisk{m: m}).applyChange(t.Context(), old, &smaller); err == nil || !strings.Contains(err.Error(), "smaller") {
		t.Errorf("a smaller disk: %v", err)
	}
}

func TestNATIsRefusedBeforeTheGuestBootsWhereNothingIsForwarded(t *testing.T) {
	h := &fakeHelper{fail: map[string]error{"launch": errors.New("no")}}
	m := open(t, t.TempDir(), h, &fakeKernels{})
	if err := os.WriteFile(m.ForwardSwitch, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"nat": "does not forward", "plain": "no"} {
		v, err := m.Create(t.Context(), api.VMSpec{Name: name, NAT: new(name == "nat")})
		if err != nil {
			t.Fatal(err)
		}
		h.calls = nil
		if err := m.Start(t.Context(), v.ID, false, &stages{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		if launched := slices.Contains(h.calls, "launch"); launched == (name == "nat") {
			t.Errorf("%s: asked the helper for %v", name, h.calls)
		}
	}
}

func TestAMissingImageIsToldFirst(t *testing.T) {
	h := &fakeHelper{}
	m := open(t, t.TempDir(), h, &fakeKernels{})
	v, err := m.Create(t.Context(), api.VMSpec{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(m.StateDir, "images/img/rootfs.ext4")); err != nil {
		t.Fatal(err)
	}
	err = m.Start(t.Context(), v.ID, false, &stages{})
	if err == nil || !strings.Contains(err.Error(), `the disk of image "debian" is not usable`) || len(h.calls) > 0 {
		t.Errorf("%v; asked the helper for %v", err, h.calls)
	}
}
