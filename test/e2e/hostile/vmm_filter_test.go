//go:build e2e

package hostile

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/paths"
	"banger/test/host"
)

// thread is one of a process, by what the kernel tells of its filters.
type thread struct {
	name          string
	mode, filters int
}

func threads(t *testing.T, pid int) (all []thread) {
	t.Helper()
	for _, file := range host.Glob(t, fmt.Sprintf("/proc/%d/task/*/status", pid)) {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(raw)) {
			key, value, _ := strings.Cut(line, ":")
			fields[key] = strings.TrimSpace(value)
		}
		th := thread{name: fields["Name"]}
		for field, to := range map[string]*int{"Seccomp": &th.mode, "Seccomp_filters": &th.filters} {
			if *to, err = strconv.Atoi(fields[field]); err != nil { // Linux 5.9 and older
				t.Fatalf("%s tells no %s: %v", file, field, err)
			}
		}
		all = append(all, th)
	}
	return all
}

// unfiltered names the kinds of Firecracker's threads that are missing, or that
// have no filter beside those of the unit.
func unfiltered(all []thread, unit int) (missing []string) {
	for kind, is := range map[string]func(string) bool{
		"VMM":  func(name string) bool { return name == "firecracker" },
		"API":  func(name string) bool { return name == "fc_api" },
		"vCPU": func(name string) bool { return strings.HasPrefix(name, "fc_vcpu ") },
	} {
		found := false
		for _, th := range all {
			if is(th.name) {
				found = true
				if th.mode != 2 || th.filters <= unit {
					missing = append(missing, fmt.Sprintf("%s thread %q has mode %d and %d filters, the unit alone gives %d", kind, th.name, th.mode, th.filters, unit))
				}
			}
		}
		if !found {
			missing = append(missing, "there is no "+kind+" thread")
		}
	}
	// Any other thread could be had by a guest just the same.
	for _, th := range all {
		if known := th.name == "firecracker" || th.name == "fc_api" || strings.HasPrefix(th.name, "fc_vcpu "); !known && !strings.HasPrefix(th.name, "kvm-") && th.filters <= unit {
			missing = append(missing, fmt.Sprintf("thread %q has %d filters, the unit alone gives %d", th.name, th.filters, unit))
		}
	}
	slices.Sort(missing)
	return missing
}

// The unit's filter is for the jailer too, and so is a wide one. What a guest meets
// that has broken out is Firecracker's own, one for each kind of thread: "Seccomp: 2"
// is true without it. So filters are counted, against a program that has the unit's
// alone.
func TestFirecrackersOwnFilterIsOn(t *testing.T) {
	vm := normal(t)
	plain := threads(t, bystanderUnit(t, "banger-vm"))
	unit := plain[0].filters
	if unit == 0 || plain[0].mode != 2 {
		t.Fatalf("a program in a VM's unit has %+v", plain)
	}
	t.Logf("the unit alone: %+v", plain)
	all := threads(t, host.MainPID(t, vm.Unit))
	for _, th := range all {
		t.Logf("%-16s mode %d, %d filters, %d of them Firecracker's own", th.name, th.mode, th.filters, th.filters-unit)
	}
	for _, what := range unfiltered(all, unit) {
		t.Error(what)
	}
	// A Firecracker that was started with --no-seccomp would look like this.
	for i := range all {
		all[i].filters = unit
	}
	if found := unfiltered(all, unit); len(found) < 3 {
		t.Errorf("threads without a filter of their own are not seen: %q", found)
	}
}

// bystanderUnit starts a program that does nothing in a unit of a kind of the
// helper's, which so has the sandbox of all of them, and returns its process.
func bystanderUnit(t *testing.T, kind string) (pid int) {
	t.Helper()
	unit := bystander(t, kind)
	pid = host.MainPID(t, unit)
	// The unit is up when its process has been forked, which is before its filters.
	host.Eventually(t, 20*time.Second, func() error {
		if name := host.Status(t, pid)["Name"]; name != "sleep" {
			return fmt.Errorf("it is %q", name)
		}
		return nil
	})
	return pid
}

func bystander(t *testing.T, kind string) (unit string) {
	t.Helper()
	var b [6]byte
	_, _ = rand.Read(b[:])
	id := hex.EncodeToString(b[:])
	unit = kind + "-" + id + ".service"
	host.Root(t, "systemd-run", "--quiet", "--collect", "--unit="+unit, "/usr/bin/sleep", "infinity")
	t.Cleanup(func() {
		host.Root(t, "systemctl", "stop", unit)
		_ = os.Remove(filepath.Join(paths.ExitDir, id+".json")) // what a VM's unit leaves
	})
	if dropIns := host.Root(t, "systemctl", "show", "--property=DropInPaths", "--value", unit); !strings.Contains(dropIns, "/"+kind+"-.service.d/10-banger.conf") {
		t.Fatalf("%s has the settings of %q", unit, dropIns)
	}
	return unit
}
