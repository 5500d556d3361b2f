package kvm

import (
	"os"
	"strings"
	"testing"
)

// This runs where this user may use KVM; a machine without has nothing to try.
func TestGuestOnKVM(t *testing.T) {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer kvm.Close()
	for name, c := range map[string]struct {
		program []byte
		want    string
	}{
		"adds":            {adds, ""},
		"computes wrong":  {[]byte{0xf4}, "computed 0x0"},
		"no such address": {[]byte{0x48, 0x89, 0x04, 0x25, 0x00, 0x00, 0x00, 0x40, 0xf4}, "triple fault"},
	} {
		t.Run(name, func(t *testing.T) {
			err := try(kvm, c.program)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestNoKVM(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := Try(null); err == nil || !strings.Contains(err.Error(), "create a VM") {
		t.Errorf("got %v", err)
	}
}
