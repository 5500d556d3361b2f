package doctor

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/helper"
)

func goodFacts() helper.HostFacts {
	return helper.HostFacts{HelperVersion: "v1"}
}

func TestFacts(t *testing.T) {
	for _, c := range Facts(goodFacts()) {
		if c.Status != api.CheckPass || c.Found == "" || c.Fix != "" {
			t.Errorf("a good host: %+v", c)
		}
	}
	for id, c := range map[string]struct {
		spoil  func(*helper.HostFacts)
		status api.CheckStatus
		says   string
	}{
		"kvm":           {func(f *helper.HostFacts) { f.KVM = "no" }, "fail", "no"},
		"device-mapper": {func(f *helper.HostFacts) { f.DeviceMapper = "no" }, "fail", "no"},
		"loop":          {func(f *helper.HostFacts) { f.Loop = "no" }, "fail", "no"},
		"tun":           {func(f *helper.HostFacts) { f.Tun = "no" }, "fail", "no"},
		"jail":          {func(f *helper.HostFacts) { f.Jail = "mounted nodev" }, "fail", "nodev"},
		"jail-tree":     {func(f *helper.HostFacts) { f.Tree = "a\nb" }, "fail", "a; b"},
		"foreign-files": {func(f *helper.HostFacts) { f.Foreign = []string{"/x"} }, "warn", "/x"},
		"nft":           {func(f *helper.HostFacts) { f.NFT = "no" }, "fail", "no"},
		"forwarding":    {func(f *helper.HostFacts) { f.Forwarding = "no" }, "warn", "no"},
		"firewall":      {func(f *helper.HostFacts) { f.Firewall = []string{"ufw", "docker"} }, "warn", "ufw; docker"},
	} {
		f := goodFacts()
		c.spoil(&f)
		all := Facts(f)
		i := slices.IndexFunc(all, func(c api.Check) bool { return c.ID == id })
		if i < 0 {
			t.Errorf("no check %s", id)
			continue
		}
		check(t, id, Finding{Status: all[i].Status, Found: all[i].Found}, c.status, c.says)
	}
}

func TestAdvisories(t *testing.T) {
	for version, want := range map[string]string{
		"0.19.0": "CVE-2019-18960", "0.19.1": "CVE-2026-1386", "0.21.1": "CVE-2020-16843", "0.22.0": "CVE-2020-27174",
		"1.12.1": "CVE-2026-1386", "1.13.1": "CVE-2026-1386", "1.13.2": "CVE-2026-5747", "1.14.0": "CVE-2026-1386",
		"1.14.3": "CVE-2026-5747", "1.15.0": "CVE-2026-5747", "": "says nothing",
	} {
		check(t, version, advisories(version), "warn", want)
	}
	for _, version := range []string{"1.14.4", "1.15.1", "1.16.1", "2.0.0", recommended} {
		check(t, version, advisories(version), "pass", version)
	}
}

func TestConfinement(t *testing.T) {
	f := helper.HostFacts{VMMs: []helper.VMM{{ID: "a"}, {ID: "b", Weak: `Seccomp is "0"`}}}
	if c := Confinement(f, []string{"a", "c"}, nil); c.Status != api.CheckWarn || !strings.Contains(c.Found, "of VM c,") {
		t.Errorf("one that nobody has seen: %+v", c)
	}
	if c := Confinement(f, nil, errors.New("no store")); c.Status != api.CheckWarn || !strings.Contains(c.Found, "no store") {
		t.Errorf("without the store: %+v", c)
	}
	// b is being started: its Firecracker has its filter later.
	if c := Confinement(f, []string{"a"}, nil); c.Status != api.CheckPass || c.Found[:1] != "1" {
		t.Errorf("%+v", c)
	}
	if c := Confinement(f, []string{"a", "b"}, nil); c.Status != api.CheckFail || c.Found != `VM b: Seccomp is "0"` {
		t.Errorf("%+v", c)
	}
}
