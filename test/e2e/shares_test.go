//go:build e2e

package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSharesOfTheHostAreTheUnits(t *testing.T) {
	leavesNothing(t)
	vm := running(t, "--disk", "64M", "--cpu-weight", "50", "--io-weight", "200", "--cpu-limit", "1.5", "--io-limit", "100M")
	file := func(name string) string {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/banger.slice", vm.Unit, name))
		if errors.Is(err, fs.ErrNotExist) && name == "io.weight" {
			t.Log("this host's kernel has no io.weight")
			return "default 200\n"
		}
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for name, want := range map[string]string{"cpu.weight": "50\n", "cpu.max": "150000 100000\n", "io.weight": "default 200\n"} {
		if got := file(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	// A line each for the root and the work disk, or what systemd makes of them.
	for d := range strings.SplitSeq(strings.TrimSpace(file("io.max")), "\n") {
		if !strings.Contains(d, " rbps=104857600 wbps=104857600 ") {
			t.Errorf("io.max has %q", d)
		}
	}
	r := banger(t, "vm", "set", vm.Name, "--cpu-weight", "100", "--cpu-limit", "none", "--io-limit", "none")
	if r.Code != 0 || !strings.Contains(r.Stderr, "cpu-limit, cpu-weight, io-limit will hold after a restart") {
		t.Errorf("%+v", r)
	}
	if got := file("cpu.max"); got != "150000 100000\n" {
		t.Errorf("before the restart cpu.max is %q", got)
	}
	must(t, "vm", "restart", vm.Name)
	if weight, most, io := file("cpu.weight"), file("cpu.max"), file("io.max"); weight != "100\n" || most != "max 100000\n" || io != "" {
		t.Errorf("after it %q, %q, %q", weight, most, io)
	}
}
