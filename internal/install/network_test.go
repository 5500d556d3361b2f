package install

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"banger/internal/installed"
	"banger/internal/paths"
)

func (f *fakeHost) installWith(bridge, network string) error {
	f.ran = nil
	return f.install(f.t.Context(), Options{Owner: "dev", From: f.from, Bridge: bridge, Network: network, Out: &f.out})
}

func (f *fakeHost) network() string {
	f.t.Helper()
	r, err := installed.Parse(f.read(paths.InstallFile))
	if err != nil {
		f.t.Fatal(err)
	}
	return r.Bridge + " " + r.Network
}

func TestNetworkIsChosen(t *testing.T) {
	f := newHost(t)
	f.addresses = func() (map[string][]netip.Prefix, error) { // its bridge is there
		return map[string][]netip.Prefix{"br-fc": {netip.MustParsePrefix("10.0.0.1/24")}, "eth0": {netip.MustParsePrefix("192.0.2.7/24")}}, nil
	}
	if err := f.installWith("", "10.0.0.1/24"); err != nil || f.network() != "br-fc 10.0.0.1/24" {
		t.Fatalf("%s, %v", f.network(), err)
	}
	if dns := f.read("/etc/systemd/system/banger-dns.socket.d/10-owner.conf"); !strings.Contains(dns, "ListenStream=10.0.0.1:53") {
		t.Errorf("names are served at %s", dns)
	}
	forget := f.at(f.programPath("banger-helper")) + " forget-network"
	if err := f.installWith("", ""); err != nil || f.network() != "br-fc 10.0.0.1/24" || slices.Contains(f.ran, forget) {
		t.Errorf("kept: %s, %v, %q", f.network(), err, f.ran)
	}
	if err := f.installWith("vms", ""); err != nil || f.network() != "vms 10.0.0.1/24" || !slices.Contains(f.ran, forget) {
		t.Errorf("another bridge: %s, %v, %q", f.network(), err, f.ran)
	}
	f.active["banger-vm-0123456789ab.service"] = true
	if err := f.installWith("", "10.1.0.1/24"); err == nil || !strings.Contains(err.Error(), "while VMs run") || f.network() != "vms 10.0.0.1/24" {
		t.Errorf("under a running VM: %v", err)
	}
	if err := f.installWith("vms", "10.0.0.1/24"); err != nil {
		t.Errorf("the same under a running VM: %v", err)
	}
}

func TestNetworkIsRefused(t *testing.T) {
	f := newHost(t)
	f.addresses = func() (map[string][]netip.Prefix, error) {
		return map[string][]netip.Prefix{
			"eth0":  {netip.MustParsePrefix("172.16.9.7/24")},
			"br-fc": {netip.MustParsePrefix("10.0.0.1/16")}, // of an installation before
		}, nil
	}
	for want, c := range map[string][2]string{
		"eth0 of this host": {"", ""},
		"is not a name":     {"br fc", "10.0.0.1/16"},
		"first address":     {"", "10.0.0.0/16"},
		"with 8 to 28":      {"", "10.0.0.1/30"},
	} {
		before := f.tree()
		if err := f.installWith(c[0], c[1]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", c, err, want)
		}
		if len(f.tree()) != len(before) {
			t.Errorf("%q: something was written", c)
		}
	}
	if err := f.installWith("", "10.0.0.1/16"); err != nil {
		t.Errorf("its own bridge is in the way: %v", err)
	}
}

func TestForeignUnitsAreNotStopped(t *testing.T) {
	for name, ours := range map[string]bool{
		"banger-vm-0123456789ab.service": true, "banger-fsck-0123456789ab.service": true, "bangerd.service": true, "banger-kvm-host.service": true,
		"banger-vm-exporter.service": false, "banger-vm-0123456789abc.service": false, "banger-fsck-.service": false,
	} {
		if IsOurUnit(name) != ours {
			t.Errorf("%s: ours is %v", name, !ours)
		}
	}
}
