//go:build e2e && faults

package faults

import (
	"slices"
	"strings"

	"banger/api"
)

// What each action has to leave after each fault: the VM as it was, or as the
// action makes it where that goes on, or failed.

// inHelper tells whether it is the helper that stands at the point; else it has
// nothing to do there, and systemd starts it again when it is asked for.
func inHelper(point string) bool {
	for _, owner := range []string{"start.", "rollback.", "stop.", "kill.", "delete.", "set.", "import."} {
		if strings.HasPrefix(point, owner) {
			return false
		}
	}
	return true
}

func always(state api.State) func(string, kind) api.State {
	return func(string, kind) api.State { return state }
}

func started(point string, k kind) api.State {
	switch {
	case k == killCLI,
		k == killHelper && !inHelper(point),
		k == killDaemon && point == "start.persist": // the record says so already
		return api.StateRunning
	}
	return api.StateFailed
}

// goesOn are the kinds that a change which has begun does not mind.
var goesOn = []kind{killCLI, cancelled, killVMM}

// refused are the kinds that make a change fail.
var refused = []kind{full, broken, stalled}

func killed(point string, k kind) api.State {
	if point == "kill.intent" && slices.Contains(refused, k) {
		return api.StateRunning // as it was
	}
	return api.StateStopped
}

// deleted: what runs is killed first, and that is not taken back. Behind that a
// delete that fails is tried again.
func deleted(point string, k kind) api.State {
	if point == "kill.intent" && slices.Contains(refused, k) {
		return api.StateRunning
	}
	return gone
}

// erased: the delete of a VM that does not run.
func erased(point string, k kind) api.State {
	switch {
	case slices.Contains(goesOn, k) || k == killDaemon || k == killHelper && !inHelper(point):
		return gone
	case point == "delete.files":
		return api.StateFailed
	}
	return api.StateStopped
}

// restarted: whoever asked has gone, or has called it off, when the stop ends.
func restarted(point string, k kind) api.State {
	switch {
	case strings.HasPrefix(point, "start."):
		return started(point, k)
	case k == killDaemon || k == cancelled:
		return api.StateStopped
	}
	return api.StateRunning
}

func grown(_ string, k kind) api.State {
	if k == killVMM {
		return api.StateFailed
	}
	return api.StateRunning
}
