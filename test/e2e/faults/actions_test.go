//go:build e2e && faults

package faults

import (
	"slices"
	"strings"

	"banger/api"
)

// kind is a way to go wrong.
type kind string

const (
	killCLI    kind = "SIGKILL cli"
	killDaemon kind = "SIGKILL bangerd"
	killHelper kind = "SIGKILL helper"
	killVMM    kind = "SIGKILL vmm"
	full       kind = "no space"
	broken     kind = "error"
	stalled    kind = "timeout"
	cancelled  kind = "cancel"
)

var kinds = []kind{killDaemon, killHelper, broken, killVMM, cancelled, full, killCLI, stalled}

// held are the kinds that need the program to stand still at the point.
var held = []kind{killCLI, killDaemon, killHelper, killVMM, cancelled}

// gone is the state of a VM that is no more.
const gone api.State = "gone"

// action is something done to a VM, with the points it passes.
type action struct {
	name   string
	points []string
	// before is the state in which it finds the VM.
	before api.State
	args   func(vm string) []string
	// ends lists the states that the VM may be in afterwards.
	ends func(point string, k kind) []api.State
	// also is a point that fails anyway, to get to the others.
	also string
	// only, if set, are the kinds that make sense.
	only []kind
	// spoils: the VM cannot be used for another trial.
	spoils bool
	// check looks at what only this action changes.
	check func(t *trial, k kind)
}

func (a action) kinds(point string) []kind {
	var out []kind
	for _, k := range kinds {
		if a.only != nil && !slices.Contains(a.only, k) {
			continue
		}
		if k == killVMM && !a.hasVMM(point) {
			continue
		}
		out = append(out, k)
	}
	return out
}

// hasVMM tells whether there is a VMM at the point.
func (a action) hasVMM(point string) bool {
	switch point {
	case "kill.ended", "stop.ended", "delete.aside", "delete.released", "delete.files", "helper.vm.kill", "helper.vm.release":
		return false
	}
	return a.before == api.StateRunning && !strings.HasPrefix(point, "start.") ||
		slices.Contains(vmmPoints, point)
}

// startPoints are the ends of the phases, and moments within the helper's verbs.
var startPoints = []string{
	"start.preflight", "helper.vm.reserve", "start.cleanup_runtime", "helper.bridge.ensure", "start.bridge",
	"start.socket_dir", "start.prepare_sockets", "start.system_overlay", "attach.loops", "attach.loaded",
	"helper.vm.attach", "start.dm_snapshot", "start.fsck_snapshot", "start.patch_root_overlay",
	"start.prepare_host_features", "start.tap", "start.metrics_file", "start.firecracker_binary",
	"launch.staged", "launch.netns",
}

// vmmPoints are those of a start at which there is a VMM.
var vmmPoints = []string{"launch.started", "helper.vm.launch", "handover.shared", "handover.dropped",
	"handover.pinned", "handover.moved", "helper.vm.handover", "start.firecracker_launch", "start.socket_access",
	"start.vsock_access", "start.wait_vsock_agent", "helper.network.apply", "start.post_start_features", "start.persist"}

func started(_ string, k kind) []api.State {
	switch k {
	case killCLI:
		return []api.State{api.StateRunning}
	case killDaemon, killHelper: // it may not have been needed any more
		return []api.State{api.StateFailed, api.StateRunning}
	}
	return []api.State{api.StateFailed}
}

func always(states ...api.State) func(string, kind) []api.State {
	return func(string, kind) []api.State { return states }
}

// goesOn are the kinds that a change which has begun does not mind.
var goesOn = []kind{killCLI, cancelled, killVMM}

func killed(point string, k kind) []api.State {
	switch {
	case slices.Contains(goesOn, k) || k == killDaemon || point != "kill.intent" && k != killHelper:
		return []api.State{api.StateStopped}
	case k == killHelper:
		return []api.State{api.StateStopped, api.StateRunning}
	}
	return []api.State{api.StateRunning} // as it was
}

func deleted(point string, k kind) []api.State {
	switch {
	case slices.Contains(goesOn, k):
		return []api.State{gone}
	case k == killDaemon && point == "kill.intent":
		return []api.State{api.StateStopped}
	case k == killDaemon:
		return []api.State{gone, api.StateStopped}
	case k == killHelper:
		return []api.State{gone, api.StateStopped, api.StateRunning}
	case point == "kill.intent":
		return []api.State{api.StateRunning}
	case point == "delete.files":
		return []api.State{api.StateFailed}
	}
	return []api.State{api.StateStopped}
}

func restarted(_ string, k kind) []api.State {
	if k == killCLI {
		return []api.State{api.StateRunning}
	}
	return []api.State{api.StateRunning, api.StateStopped, api.StateFailed}
}

func actions() []action {
	vm := func(args ...string) func(string) []string {
		return func(name string) []string {
			return append([]string{"vm", args[0], name}, args[1:]...)
		}
	}
	return []action{
		{name: "start", points: slices.Concat(startPoints, vmmPoints), before: api.StateCreated, args: vm("start"), ends: started},
		{name: "start again", points: []string{"start.cleanup_runtime", "start.fsck_snapshot", "fsck.jail", "fsck.started", "helper.vm.fsck"},
			before: api.StateStopped, args: vm("start"), ends: started},
		{name: "rollback", points: []string{"rollback.firecracker_launch", "cleanup.disks", "cleanup.jail",
			"rollback.dm_snapshot", "rollback.system_overlay"}, also: "start.socket_access",
			before: api.StateCreated, args: vm("start"), ends: always(api.StateFailed),
			only: []kind{killDaemon, killHelper, broken, killCLI}},
		{name: "stop", points: []string{"stop.intent", "stop.asked", "stop.ended"}, before: api.StateRunning,
			args: vm("stop"), ends: always(api.StateStopped)},
		{name: "kill", points: []string{"kill.intent", "helper.vm.kill", "kill.ended"}, before: api.StateRunning,
			args: vm("kill"), ends: killed},
		{name: "restart", points: []string{"stop.asked", "start.dm_snapshot", "start.wait_vsock_agent"}, before: api.StateRunning,
			args: vm("restart"), ends: restarted},
		{name: "set", points: []string{"set.stored"}, before: api.StateStopped,
			args: vm("set", "--memory", "160M"), ends: always(api.StateStopped), check: checkMemory},
		{name: "set live", points: []string{"set.stored"}, before: api.StateRunning,
			args: vm("set", "--disk", "128M"), ends: always(api.StateRunning, api.StateFailed), spoils: true},
		{name: "set image", points: []string{"set.stored"}, before: api.StateStopped,
			args: vm("set", "--image", otherImage), ends: always(api.StateStopped), check: checkImage, spoils: true},
		{name: "delete", points: []string{"kill.intent", "delete.aside", "helper.vm.release", "delete.released", "delete.files"},
			before: api.StateRunning, args: vm("delete", "--force"), ends: deleted},
	}
}
