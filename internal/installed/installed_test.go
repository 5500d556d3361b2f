package installed

import (
	"strings"
	"testing"
)

func valid() Record {
	return Record{Owner: "dev", UID: 1000, GID: 1000, UIDBase: 200000, UIDCount: 65536, Bridge: "br-test", Network: "10.9.0.1/24",
		Firecracker: "/x/firecracker", Jailer: "/x/jailer", Version: "v1 \"quoted\""}
}

func TestRoundTrip(t *testing.T) {
	text, err := valid().Text()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(text)
	if err != nil || got != valid() {
		t.Fatalf("Parse(Text()) = %+v, %v", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	good, err := valid().Text()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"unknown key":    good + "colour = 1\n",
		"repeated key":   good + "uid = 1000\n",
		"no value":       good + "gid\n",
		"not a string":   strings.Replace(good, `"dev"`, "dev", 1),
		"root owner":     strings.Replace(good, "uid = 1000", "uid = 0", 1),
		"owner in range": strings.Replace(good, "uid = 1000", "uid = 200001", 1),
		"low range":      strings.Replace(good, "uid_base = 200000", "uid_base = 100", 1),
		"relative vmm":   strings.Replace(good, "/x/jailer", "jailer", 1),
		"bridge":         strings.Replace(good, "br-test", "br/test", 1),
		"long bridge":    strings.Replace(good, "br-test", "br-test-test-test", 1),
		"no prefix":      strings.Replace(good, "10.9.0.1/24", "10.9.0.1", 1),
		"tiny network":   strings.Replace(good, "10.9.0.1/24", "10.9.0.1/30", 1),
		"not the first":  strings.Replace(good, "10.9.0.1/24", "10.9.0.2/24", 1),
		"version 6":      strings.Replace(good, "10.9.0.1/24", "fd00::1/24", 1),
		"empty":          "",
	} {
		if r, err := Parse(text); err == nil {
			t.Errorf("%s: accepted as %+v", name, r)
		}
	}
}

func TestGuestAddress(t *testing.T) {
	r := valid()
	for slot, want := range map[int]string{0: "10.9.0.2/24", 7: "10.9.0.9/24", 252: "10.9.0.254/24"} {
		got, ok := r.GuestAddress(slot)
		if !ok || got.String() != want {
			t.Errorf("slot %d: %s %v, want %s", slot, got, ok, want)
		}
	}
	for _, slot := range []int{-1, 253, 1 << 20} { // 253 would be the broadcast address
		if got, ok := r.GuestAddress(slot); ok {
			t.Errorf("slot %d: %s", slot, got)
		}
	}
	addr, _ := r.GuestAddress(7)
	if got := GuestMAC(addr.Addr()).String(); got != "02:fc:0a:09:00:09" {
		t.Errorf("MAC %s", got)
	}
}

func TestAnOldRecordGetsTheDefaultNetwork(t *testing.T) {
	r := valid()
	text, err := r.Text()
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Replace(strings.Replace(text, `bridge = "br-test"`, "", 1), `network = "10.9.0.1/24"`, "", 1)
	got, err := Parse(old)
	if err != nil || got.Bridge != DefaultBridge || got.Network != DefaultNetwork {
		t.Errorf("%+v, %v", got, err)
	}
}
