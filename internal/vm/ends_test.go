package vm

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/helper"
)

// runningVM puts a VM into the records that runs, as far as they tell.
func runningVM(t *testing.T, m *Manager, name string, restart api.Restart) string {
	t.Helper()
	v, err := m.Create(t.Context(), api.VMSpec{Name: name, Restart: restart})
	if err != nil {
		t.Fatal(err)
	}
	v.State, v.StartedAt, v.Slot = api.StateRunning, time.Now(), 3
	if err := m.Store.UpdateVM(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	return v.ID
}

// TestWhatFollowsAnEnd uses a helper that refuses to launch, so a VM that is
// started again shows as one whose start failed.
func TestWhatFollowsAnEnd(t *testing.T) {
	clean := helper.Exit{Result: "success", ExitCode: "exited", Status: "0"}
	killed := helper.Exit{Result: "signal", ExitCode: "killed", Status: "KILL"}
	for name, tc := range map[string]struct {
		exit    helper.Exit
		intent  string
		restart api.Restart
		again   bool
		want    api.State // if not again
		reason  string
	}{
		"reboot":                  {exit: clean, intent: guest.ActionReboot, again: true},
		"reboot-untold":           {exit: clean, again: true},
		"reboot-never":            {exit: clean, restart: api.RestartNever, want: api.StateStopped, reason: "rebooted"},
		"poweroff":                {exit: killed, intent: guest.ActionPowerOff, want: api.StateStopped, reason: "powered off"},
		"poweroff-clean":          {exit: clean, intent: guest.ActionPowerOff, want: api.StateStopped, reason: "powered off"},
		"poweroff-on-failure":     {exit: killed, intent: guest.ActionPowerOff, restart: api.RestartOnFailure, want: api.StateStopped},
		"poweroff-always":         {exit: killed, intent: guest.ActionPowerOff, restart: api.RestartAlways, again: true},
		"crash":                   {exit: killed, want: api.StateFailed, reason: "KILL"},
		"crash-never":             {exit: killed, restart: api.RestartNever, want: api.StateFailed},
		"crash-on-failure":        {exit: killed, restart: api.RestartOnFailure, again: true},
		"crash-while-it-rebooted": {exit: killed, intent: guest.ActionReboot, want: api.StateFailed, reason: "KILL"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &fakeHelper{fail: map[string]error{"launch": errors.New("started again")}}
			m := open(t, t.TempDir(), h, &fakeKernels{})
			id := runningVM(t, m, name, tc.restart)
			m.attend(mustGet(t, m, name))
			m.guests.mu.Lock()
			m.guests.intents[id] = tc.intent
			m.guests.mu.Unlock()
			tc.exit.ID = id
			writeExit(t, m.ExitDir, tc.exit)
			want := tc.want
			if tc.again {
				want = api.StateFailed
				tc.reason = "started again"
			}
			awaitState(t, m, name, want, tc.reason)
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			if again := slices.Contains(h.calls, "launch"); again != tc.again {
				t.Errorf("started again: %v, want %v (%v)", again, tc.again, h.calls)
			}
		})
	}
}

func TestRestartsAreBounded(t *testing.T) {
	var a attendants
	now := time.Now()
	for i := range restartLimit {
		if !a.mayRestart("x", now.Add(time.Duration(i)*time.Second)) {
			t.Fatalf("restart %d was refused", i)
		}
	}
	if a.mayRestart("x", now.Add(restartLimit*time.Second)) {
		t.Error("one too many was allowed")
	}
	if !a.mayRestart("y", now) {
		t.Error("another VM pays for it")
	}
	if !a.mayRestart("x", now.Add(restartWindow+time.Second)) {
		t.Error("it is never forgiven")
	}
	a.forget("x")
	if len(a.starts) != 1 {
		t.Errorf("%d VMs are remembered", len(a.starts))
	}
}

func TestAPausedVMIsNotIdle(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v, _ := inJail(t, m, "a")
	v.IdleStop = 60
	if err := m.Store.UpdateVM(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	for what, use := range map[string]func() error{
		"resume": func() error { return m.Resume(t.Context(), v.ID, &stages{}) },
		"space":  func() error { return m.spaceChanged(t.Context(), v.ID) },
		"set": func() error {
			_, err := m.Change(t.Context(), v.ID, api.VMChange{Autostart: new(!v.Autostart)})
			return err
		},
	} {
		v.State, v.Reason = api.StatePaused, ""
		if what == "space" {
			v.Reason = pausedForSpace
		}
		if err := m.Store.UpdateVM(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		m.activity.note(v.ID, long)
		m.activity.traffic(v.ID, 0, long)
		if !m.unused(v, time.Now()) {
			t.Fatalf("%s: it is in use before", what)
		}
		if err := use(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if m.unused(v, time.Now()) {
			t.Errorf("%s: it would be stopped as idle", what)
		}
	}
}

func TestIdleIsSinceTheLastUse(t *testing.T) {
	var a activity
	start := time.Now()
	if since := a.traffic("x", 100, start); !since.Equal(start) {
		t.Errorf("a VM nobody has seen is idle since %s", since)
	}
	later := start.Add(time.Hour)
	if since := a.traffic("x", 100, later); !since.Equal(start) {
		t.Errorf("no traffic: idle since %s", since)
	}
	if since := a.traffic("x", 101, later); !since.Equal(later) {
		t.Errorf("traffic: idle since %s", since)
	}
	used := later.Add(time.Minute)
	a.note("x", used)
	if since := a.traffic("x", 101, used.Add(time.Hour)); !since.Equal(used) {
		t.Errorf("used: idle since %s", since)
	}
	over := a.use("x")
	if since := a.traffic("x", 101, used.Add(2*time.Hour)); !since.Equal(used.Add(2 * time.Hour)) {
		t.Errorf("with an open stream it is idle since %s", since)
	}
	over()
	a.forget("x")
	a.use("x")()
	over = a.use("x")
	a.forget("x")
	over()
	if len(a.last) != 0 {
		t.Errorf("a deleted VM is remembered: %v", a.last)
	}
	a.forget("x")
	if len(a.last) != 0 {
		t.Error("a deleted VM is remembered")
	}
}

func TestAutostartHappensOncePerBoot(t *testing.T) {
	dir := t.TempDir()
	h := &fakeHelper{fail: map[string]error{"launch": errors.New("no")}}
	m := open(t, dir, h, &fakeKernels{})
	if _, err := m.Create(t.Context(), api.VMSpec{Name: "auto", Autostart: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Create(t.Context(), api.VMSpec{Name: "manual"}); err != nil {
		t.Fatal(err)
	}
	mark := dir + "/mark"
	if err := m.autostart(mark); err != nil {
		t.Fatal(err)
	}
	if v := awaitState(t, m, "auto", api.StateFailed); !strings.Contains(v.Reason, "no") {
		t.Errorf("reason %q", v.Reason)
	}
	if v := mustGet(t, m, "manual"); v.State != api.StateCreated {
		t.Errorf("manual is %s", v.State)
	}
	for _, err := os.Lstat(mark); err != nil; _, err = os.Lstat(mark) { // when all are started
		runtime.Gosched()
	}
	launches := count(h.calls, "launch")
	if err := m.autostart(mark); err != nil { // bangerd was restarted
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if now := count(h.calls, "launch"); now != launches || launches != 1 {
		t.Errorf("%d launches, then %d", launches, now)
	}
}

func count(all []string, what string) int {
	n := 0
	for _, s := range all {
		if s == what {
			n++
		}
	}
	return n
}
