//go:build power

package power

import (
	"strings"
	"testing"
	"time"

	"banger/api"
)

// slow is how long a guest of this test takes to end when it is asked to.
const slow = 20 * time.Second

// slowEnd leaves a process that takes its time when it is asked to end, and
// writes a file last.
const slowEnd = `echo early >/early; sync
setsid sh -c 'trap "sleep 20; echo late >/late; exit" TERM; echo ready >/ready; while :; do sleep 1; done' </dev/null >/dev/null 2>&1 &
until [ -e /ready ]; do sleep 1; done`

// A host that goes down stops its guests first, all at the same time, and each
// ends by itself. After its boot those start that are to, and nothing else is
// there.
func TestReboot(t *testing.T) {
	h := newHost(t)
	h.must("sh", "-c", tinyScript)
	names := []string{"a", "b", "c"}
	for _, name := range names {
		create := "banger vm create --image tiny --memory 128M --nat --name " + name
		if name == "a" {
			create += " --autostart"
		}
		// A guest of an emulated host stands still at its boot now and then.
		h.must("sh", "-c", create+" || { banger vm delete --force "+name+" && "+create+"; }")
		h.must("banger", "vm", "exec", name, "--", "sh", "-c", slowEnd)
	}
	begun := time.Now()
	if err := h.m.Stop(t.Context(), h.progress); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	t.Logf("a host with %d guests that take %s each went down in %.1fs", len(names), slow, took.Seconds())
	if took < slow || took > time.Duration(len(names))*slow {
		t.Errorf("the host went down in %s: at once, or one guest after the other", took)
	}
	if err := h.m.Start(t.Context(), h.progress); err != nil {
		t.Fatal(err)
	}
	h.must("sh", "-c", `until banger vm exec a -- true 2>/dev/null; do sleep 1; done`) // it starts by itself, or must's time ends
	defer func() {
		if t.Failed() {
			t.Logf("how it went down:\n%s", h.must("journalctl", "--boot=-1", "--no-hostname", "--output=short-precise",
				"--unit=banger-guests", "--unit=bangerd", "--unit=banger-helper", "--lines=80"))
		}
	}()
	vms := h.list()
	for _, name := range names {
		v := vms[name]
		if name != "a" && (v.State != api.StateStopped || v.Reason != "") {
			t.Errorf("VM %s is %s (%s)", name, v.State, v.Reason)
		}
	}
	h.must("banger", "vm", "stop", "a")
	h.wantNothingLeft(vms)
	h.must("banger", "vm", "start", "a", "b", "c")
	for _, name := range names {
		if got := h.must("banger", "vm", "exec", name, "--", "cat", "/early", "/late"); got != "early\nlate\n" {
			t.Errorf("VM %s has %q: it was not asked to end, or not waited for", name, strings.TrimSpace(got))
		}
	}
}
