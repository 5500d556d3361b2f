package server

import (
	"strings"
	"testing"
	"time"
)

// These run where this user may use KVM; a machine without has nothing to try.
func TestGuestOnKVM(t *testing.T) {
	if err := hasKVM(); err != nil {
		t.Skip(err)
	}
	const busy = 5 * time.Second // enough where the host is
	for name, c := range map[string]struct {
		program []byte
		limit   time.Duration
		want    string
	}{
		"adds":            {adds, busy, ""},
		"computes wrong":  {[]byte{0xf4}, busy, "computed 0x0"},
		"never ends":      {[]byte{0xeb, 0xfe}, 300 * time.Millisecond, "did not come to its end"}, // jmp to itself
		"no such address": {[]byte{0x48, 0x89, 0x04, 0x25, 0x00, 0x00, 0x00, 0x40, 0xf4}, busy, "triple fault"},
	} {
		t.Run(name, func(t *testing.T) {
			begun := time.Now()
			err := runGuest(t.Context(), c.program, c.limit)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if d := time.Since(begun); d > 10*time.Second {
				t.Errorf("took %s", d)
			}
		})
	}
}

func TestOneGuestAtATime(t *testing.T) {
	kvmBusy.Lock()
	defer kvmBusy.Unlock()
	if err := checkKVM(t.Context()); err == nil || !strings.Contains(err.Error(), "hangs") {
		t.Errorf("got %v", err)
	}
}
