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
	// ends is the state that the VM has to be in afterwards.
	ends func(point string, k kind) api.State
	// also is a point that fails anyway, to get to the others.
	also string
	// only, if set, are the kinds that make sense.
	only []kind
	// tells: its command succeeds if and only if this state is reached.
	tells api.State
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
		if a.isBehind(point) && (k == killCLI || k == cancelled) {
			continue // the command and its operation have ended: there is nobody to hit
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

// isStart tells whether the point belongs to a start, which has a time of its
// own: except for fsck, which has that of the helper.
func (a action) isStart(point string) bool {
	switch point {
	case "fsck.jail", "fsck.started", "helper.vm.fsck":
		return false
	}
	return slices.Contains(slices.Concat(startPoints, vmmPoints), point) && a.name != "rollback"
}

// phaseOf is the phase of a start that a point belongs to.
func phaseOf(point string) string {
	all := slices.Concat(startPoints, vmmPoints)
	for _, p := range all[max(0, slices.Index(all, point)):] {
		if phase, ok := strings.CutPrefix(p, "start."); ok {
			return phase
		}
	}
	return ""
}

// behindDelete are passed when the delete of a VM that ran has been answered.
var behindDelete = []string{"helper.vm.release", "delete.released", "delete.files"}

// isBehind tells whether the point is passed when the command may have ended.
func (a action) isBehind(point string) bool {
	return a.name == "delete" && slices.Contains(behindDelete, point)
}

// startPoints are the ends of the phases, and moments within the helper's verbs.
var startPoints = []string{
	"helper.vm.reserve", "start.preflight", "start.cleanup_runtime", "helper.bridge.ensure", "start.bridge",
	"start.socket_dir", "start.prepare_sockets", "start.system_overlay", "attach.loops", "attach.loaded",
	"helper.vm.attach", "start.dm_snapshot", "start.fsck_snapshot", "start.patch_root_overlay",
	"start.prepare_host_features", "start.tap", "start.metrics_file", "start.firecracker_binary",
	"launch.staged", "launch.netns",
}

// vmmPoints are those of a start at which there is a VMM.
var vmmPoints = []string{"launch.started", "helper.vm.launch", "handover.shared", "handover.dropped",
	"handover.pinned", "handover.moved", "helper.vm.handover", "start.firecracker_launch", "start.socket_access",
	"start.vsock_access", "start.wait_vsock_agent", "helper.network.apply", "start.post_start_features", "start.persist"}

func actions() []action {
	vm := func(args ...string) func(string) []string {
		return func(name string) []string {
			return append([]string{"vm", args[0], name}, args[1:]...)
		}
	}
	return []action{
		{name: "start", points: slices.Concat(startPoints, vmmPoints), before: api.StateCreated, args: vm("start"), ends: started, tells: api.StateRunning},
		{name: "start again", points: []string{"start.cleanup_runtime", "start.fsck_snapshot", "fsck.jail", "fsck.started", "helper.vm.fsck"},
			before: api.StateStopped, args: vm("start"), ends: started, tells: api.StateRunning},
		{name: "rollback", points: []string{"rollback.firecracker_launch", "cleanup.disks", "cleanup.jail",
			"rollback.dm_snapshot", "rollback.system_overlay"}, also: "start.socket_access",
			before: api.StateCreated, args: vm("start"), ends: always(api.StateFailed),
			only: []kind{killDaemon, killHelper, broken, killCLI, stalled}},
		{name: "stop", points: []string{"stop.intent", "stop.asked", "stop.ended"}, before: api.StateRunning,
			args: vm("stop"), ends: always(api.StateStopped)},
		{name: "kill", points: []string{"kill.intent", "helper.vm.kill", "kill.ended"}, before: api.StateRunning,
			args: vm("kill"), ends: killed},
		{name: "restart", points: []string{"stop.asked", "start.dm_snapshot", "start.wait_vsock_agent"}, before: api.StateRunning,
			args: vm("restart"), ends: restarted, tells: api.StateRunning},
		{name: "set", points: []string{"set.stored"}, before: api.StateStopped,
			args: vm("set", "--memory", "160M"), ends: always(api.StateStopped), check: checkMemory},
		{name: "set live", points: []string{"set.stored"}, before: api.StateRunning,
			args: vm("set", "--disk", "128M"), ends: grown, check: checkDisk, spoils: true},
		{name: "set image", points: []string{"set.stored"}, before: api.StateStopped,
			args: vm("set", "--image", otherImage), ends: always(api.StateStopped), check: checkImage, spoils: true},
		{name: "delete", points: slices.Concat([]string{"kill.intent", "delete.aside"}, behindDelete), before: api.StateRunning,
			args: vm("delete", "--force"), ends: deleted, tells: gone},
		{name: "delete stopped", points: []string{"delete.aside", "helper.vm.release", "delete.released", "delete.files"},
			before: api.StateStopped, args: vm("delete", "--force"), ends: erased, tells: gone},
	}
}
