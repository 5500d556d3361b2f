//go:build e2e && faults

// Package faults is the fault matrix: for every step of what banger does to a
// VM, every way in which it can go wrong there, and then a look at what is left.
// It needs programs built with the tag "faults"; `make test-faults` installs
// them in the lab. FAULTS=spread runs a part: each
// point and each kind, not each pair.
package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/fault"
	"banger/test/host"
)

// kind is a way to go wrong.
type kind string

const (
	killCLI    kind = "SIGKILL cli"
	killDaemon kind = "SIGKILL bangerd"
	killHelper kind = "SIGKILL helper"
	killVMM    kind = "SIGKILL firecracker"
	full       kind = "no space"
	broken     kind = "error"
	stalled    kind = "timeout"
	cancelled  kind = "cancel"
)

var kinds = []kind{killCLI, killDaemon, killHelper, killVMM, full, broken, stalled, cancelled}

// held are the kinds that need the program to stand still at the point.
var held = []kind{killCLI, killDaemon, killHelper, killVMM, cancelled}

// action is something done to a VM, with the points it passes.
type action struct {
	name   string
	points []string
	// before is the state in which it finds the VM.
	before api.State
	run    func(vm string) []string
	// may lists the states that it may leave the VM in, whatever happens.
	may []api.State
	// gone: the VM itself may have been deleted.
	gone bool
}

var startPoints = []string{"preflight", "cleanup_runtime", "bridge", "socket_dir", "prepare_sockets", "system_overlay",
	"dm_snapshot", "fsck_snapshot", "patch_root_overlay", "prepare_host_features", "tap", "metrics_file",
	"firecracker_binary", "firecracker_launch", "socket_access", "vsock_access", "wait_vsock_agent",
	"post_start_features", "persist"}

func actions() []action {
	var starts []string
	for _, p := range startPoints {
		starts = append(starts, "start."+p)
	}
	return []action{
		{"start", starts, api.StateStopped, func(vm string) []string { return []string{"vm", "start", vm} },
			[]api.State{api.StateRunning, api.StateFailed, api.StateStopped}, false},
		{"stop", []string{"stop.intent", "stop.asked", "stop.ended"}, api.StateRunning,
			func(vm string) []string { return []string{"vm", "stop", vm} },
			[]api.State{api.StateRunning, api.StateStopped, api.StateFailed}, false},
		{"kill", []string{"kill.intent", "kill.ended"}, api.StateRunning,
			func(vm string) []string { return []string{"vm", "kill", vm} },
			[]api.State{api.StateRunning, api.StateStopped, api.StateFailed}, false},
		{"restart", []string{"stop.asked", "start.dm_snapshot", "start.wait_vsock_agent"}, api.StateRunning,
			func(vm string) []string { return []string{"vm", "restart", vm} },
			[]api.State{api.StateRunning, api.StateStopped, api.StateFailed}, false},
		{"set", []string{"set.stored"}, api.StateStopped,
			func(vm string) []string { return []string{"vm", "set", vm, "--vcpu", "2"} },
			[]api.State{api.StateStopped}, false},
		{"delete", []string{"kill.intent", "delete.files", "delete.released"}, api.StateRunning,
			func(vm string) []string { return []string{"vm", "delete", "--force", vm} },
			[]api.State{api.StateRunning, api.StateStopped, api.StateFailed}, true},
	}
}

func TestMatrix(t *testing.T) {
	if err := os.MkdirAll(fault.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(fault.Dir, 0o777); err != nil { // the owner's daemon renames in it
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(fault.Dir) })
	spread := os.Getenv("FAULTS") == "spread"
	by := newBystander(t)
	baseline := host.Inventory(t)
	results := map[string]string{}
	n := 0
	for _, a := range actions() {
		for i, point := range a.points {
			for j, k := range kinds {
				n++
				// The spread visits each point and each kind, not each pair.
				if spread && (i+j)%len(kinds) != 0 || a.name == "set" && k == killVMM {
					continue
				}
				cell := fmt.Sprintf("%s/%s/%s", a.name, point, k)
				ok := t.Run(cell, func(t *testing.T) { trial(t, a, point, k, by, baseline) })
				results[cell] = map[bool]string{true: "ok", false: "FAILED"}[ok]
			}
		}
	}
	printMatrix(t, results)
}

// printMatrix shows one line per point, one column per kind.
func printMatrix(t *testing.T, results map[string]string) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-32s", "")
	for _, k := range kinds {
		fmt.Fprintf(&b, " %-20s", k)
	}
	for _, a := range actions() {
		for _, point := range a.points {
			fmt.Fprintf(&b, "\n%-32s", a.name+" "+point)
			for _, k := range kinds {
				r := results[fmt.Sprintf("%s/%s/%s", a.name, point, k)]
				if r == "" {
					r = "-"
				}
				fmt.Fprintf(&b, " %-20s", r)
			}
		}
	}
	t.Log(b.String())
}

// bystander is a VM that must never notice.
type bystander struct{ id, name, boot string }

func newBystander(t *testing.T) bystander {
	t.Helper()
	host.Must(t, "vm", "run", "-d", "--name", "bystander")
	t.Cleanup(func() { host.Must(t, "vm", "delete", "--force", "bystander") })
	v := show(t, "bystander")
	return bystander{v.ID, v.Name, bootID(t, v.Name)}
}

func bootID(t *testing.T, name string) string {
	t.Helper()
	return host.Must(t, "vm", "exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id")
}

func show(t *testing.T, name string) api.VM {
	t.Helper()
	var v api.VM
	if err := json.Unmarshal([]byte(host.Must(t, "vm", "show", "--json", name)), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// trial makes one thing go wrong at one point.
func trial(t *testing.T, a action, point string, k kind, by bystander, baseline []string) {
	name := "victim"
	args := []string{"vm", "create", "--name", name}
	if a.before == api.StateRunning {
		args = []string{"vm", "run", "-d", "--name", name}
	}
	host.Must(t, args...)
	victim := show(t, name)
	t.Cleanup(func() {
		host.Banger(t, "vm", "delete", "--force", name)
		_ = os.RemoveAll(filepath.Join(fault.Dir, point))
	})
	if a.before == api.StateStopped && (point == "start.fsck_snapshot" || point == "start.cleanup_runtime") {
		host.Must(t, "vm", "start", name) // so that there is something to check and to clean
		host.Must(t, "vm", "stop", name)
	}
	inject(t, a, point, k, victim)
	settle(t, a, name)
	check(t, a, k, victim, by, baseline)
}

// inject runs the action and makes it fail at point.
func inject(t *testing.T, a action, point string, k kind, victim api.VM) {
	t.Helper()
	file := filepath.Join(fault.Dir, point)
	what := map[kind]string{full: fault.Full, broken: fault.Error, stalled: fault.Stall}[k]
	if slices.Contains(held, k) {
		what = fault.Hold
	}
	if err := os.WriteFile(file, []byte(what), 0o644); err != nil {
		t.Fatal(err)
	}
	c := host.Command(t, t.Context(), a.run(victim.Name)...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Wait() }() // its code depends on the fault
	reached := file + ".reached"
	host.Eventually(t, 90*time.Second, func() error {
		if _, err := os.Lstat(reached); err != nil {
			return fmt.Errorf("%s was not reached", point)
		}
		return nil
	})
	defer func() { _ = os.Remove(reached) }() // lets it go on
	switch k {
	case killCLI:
		_ = c.Process.Kill()
	case killDaemon:
		_ = syscall.Kill(host.MainPID(t, "bangerd.service"), syscall.SIGKILL)
	case killHelper:
		if pid := host.MainPID(t, "banger-helper.service"); pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	case killVMM:
		if pid := host.MainPID(t, victim.Unit); pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	case cancelled:
		cancelOperations(t)
	}
}

func cancelOperations(t *testing.T) {
	t.Helper()
	var ops []api.Operation
	if err := json.Unmarshal([]byte(host.Must(t, "operation", "list", "--json")), &ops); err != nil {
		t.Fatal(err)
	}
	for _, op := range ops {
		if op.Status == api.OperationRunning {
			host.Banger(t, "operation", "cancel", op.ID)
		}
	}
}

// settle waits until nothing happens to the VM any more.
func settle(t *testing.T, a action, name string) {
	t.Helper()
	host.Eventually(t, 2*time.Minute, func() error {
		r := host.Banger(t, "vm", "show", "--json", name)
		if r.Code != 0 {
			if a.gone && strings.Contains(r.Stderr, "there is no VM") {
				return nil
			}
			return fmt.Errorf("show: %s", r.Stderr)
		}
		var v api.VM
		if err := json.Unmarshal([]byte(r.Stdout), &v); err != nil {
			return err
		}
		if !slices.Contains(a.may, v.State) && v.State != a.before && v.State != api.StateCreated {
			return fmt.Errorf("it is %s", v.State)
		}
		return idle(t)
	})
}

// idle tells whether any operation is under way.
func idle(t *testing.T) error {
	var ops []api.Operation
	if err := json.Unmarshal([]byte(host.Must(t, "operation", "list", "--json")), &ops); err != nil {
		return err
	}
	for _, op := range ops {
		if op.Status == api.OperationRunning {
			return fmt.Errorf("%s is running", op.Kind)
		}
	}
	return nil
}

// check looks at what the fault has left.
func check(t *testing.T, a action, k kind, victim api.VM, by bystander, baseline []string) {
	t.Helper()
	r := host.Banger(t, "vm", "show", "--json", victim.Name)
	if r.Code == 0 {
		v := show(t, victim.Name)
		if v.State == api.StateFailed && v.Reason == "" {
			t.Error("it failed without a reason")
		}
		if v.State == api.StateRunning {
			bootID(t, v.Name) // it answers
		} else {
			onlyBaseline(t, baseline)
			host.Must(t, "vm", "start", v.Name) // it can be started
			bootID(t, v.Name)
		}
		host.Must(t, "vm", "delete", "--force", v.Name)
	}
	onlyBaseline(t, baseline)
	if dirs := host.Glob(t, "/var/lib/banger/vms/"+victim.ID); len(dirs) != 0 {
		t.Errorf("files are left: %v", dirs)
	}
	if boot := bootID(t, by.name); boot != by.boot {
		t.Errorf("the other VM noticed: boot id %s, was %s", boot, by.boot)
	}
}

func onlyBaseline(t *testing.T, baseline []string) {
	t.Helper()
	host.Eventually(t, 5*time.Second, func() error {
		if now := host.Inventory(t); !slices.Equal(now, baseline) {
			return fmt.Errorf("before %q, now %q", baseline, now)
		}
		return nil
	})
}
