//go:build e2e && faults

package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/paths"
	"banger/test/host"
)

// trial is one thing that goes wrong at one point.
type trial struct {
	testing.TB
	m     *matrix
	a     action
	point string
	k     kind
	// before and after are the VM's records; after is nil if it is gone.
	before api.VM
	after  *api.VM
	cli    bytes.Buffer
	code   int // of the command
}

func (m *matrix) try(t testing.TB, a action, point string, k kind) {
	t.Helper()
	tr := &trial{TB: t, m: m, a: a, point: point, k: k}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the command said: %s\n%s", tr.cli.String(), host.Journal(40))
			m.drop(t)
		}
	})
	tr.before = m.ready(t, a.before)
	if a.check != nil && a.before == api.StateStopped {
		tr.mark()
	}
	m.shortStarts(t, k == stalled && a.isStart(point))
	tr.inject(a.args(tr.before.Name))
	tr.settle()
	tr.check()
	if a.spoils {
		m.drop(t)
	}
}

// ready makes the VM what an action wants; the last trial's, if it is fit.
func (m *matrix) ready(t testing.TB, want api.State) api.VM {
	t.Helper()
	if m.victim != nil && want == api.StateCreated {
		m.drop(t)
	}
	if m.victim == nil {
		m.made++
		name := fmt.Sprintf("victim-%d", m.made)
		m.victim = &api.VM{Name: name}
		memory, disk, nat := 128, int64(64<<20), true
		op, err := m.c.CreateVM(t.Context(), api.VMSpec{Name: name, Image: tinyImage, MemoryMiB: &memory,
			DiskBytes: &disk, NAT: &nat, NoStart: want == api.StateCreated})
		m.done(t, op, err)
	}
	v := m.show(t, m.victim.Name)
	switch {
	case want == api.StateRunning && v.State != want:
		op, err := m.c.StartVM(t.Context(), v.Name, false)
		m.done(t, op, err)
	case want == api.StateStopped && v.State == api.StateRunning:
		op, err := m.c.KillVM(t.Context(), v.Name)
		m.done(t, op, err)
	case want == api.StateStopped && v.State != want:
		t.Fatalf("the VM is %s", v.State)
	}
	v = m.show(t, v.Name)
	m.victim = &v
	return v
}

// drop deletes the VM, and looks for what is left of it.
func (m *matrix) drop(t testing.TB) {
	t.Helper()
	if m.victim == nil {
		return
	}
	v := *m.victim
	m.victim = nil
	op, err := m.c.DeleteVM(context.WithoutCancel(t.Context()), v.Name, true)
	if isGone(err) {
		return
	}
	m.done(t, op, err)
	m.vanished(t, v)
}

func isGone(err error) bool {
	p, ok := errors.AsType[*api.Problem](err)
	return ok && p.Code == api.CodeNotFound
}

// vanished waits until nothing is left of a VM that was deleted.
func (m *matrix) vanished(t testing.TB, v api.VM) {
	t.Helper()
	if host.Resolves(t, v.Name) {
		t.Error("its name is still served")
	}
	m.onlyBaseline(t)
	if v.ID == "" { // it could not be made
		return
	}
	host.Eventually(t, cleanTime, func() error {
		for _, where := range []string{paths.StateDir + "/vms/", paths.ExitDir + "/"} {
			if left := host.Glob(t, where+"*"+v.ID+"*"); len(left) != 0 {
				return fmt.Errorf("files are left: %v", left)
			}
		}
		if _, taken := host.Slots(t)[v.ID]; taken {
			return errors.New("its slot is not free")
		}
		return nil
	})
}

// cleanTime is what passes until all is removed behind a command's answer.
const cleanTime = 30 * time.Second

// shortTime is enough for a start in the lab, mostly, and not too long to wait for.
const shortTime = "20s"

// shortStarts lets a start that stands still fail soon, or late again.
func (m *matrix) shortStarts(t testing.TB, short bool) {
	t.Helper()
	if m.short == short {
		return
	}
	text := m.config
	if short {
		const section = "\n[vm_defaults]\n"
		if !strings.Contains(text, section) {
			t.Fatalf("%s has no section for it", paths.ConfigFile)
		}
		text = strings.Replace(text, section, section+"start_timeout = \""+shortTime+"\"\n", 1)
	}
	if err := os.WriteFile(paths.ConfigFile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	m.short = short
	host.Root(t, "systemctl", "restart", "bangerd.service")
}

// fault is what the programs are told to do at the point. A step stands still
// where something bounds it: a start has its own time, a rollback's step half a
// minute. Where nothing does, an error says that it took too long.
func (tr *trial) fault() string {
	switch {
	case slices.Contains(held, tr.k):
		return fault.Hold
	case tr.k == full:
		return fault.Full
	case tr.k == broken:
		return fault.Error
	case tr.a.isStart(tr.point) || tr.a.name == "rollback":
		return fault.Stall
	}
	return fault.Late
}

// bootTime is longer than a start may take.
const bootTime = 150 * time.Second

// inject runs a command and makes it fail at the point.
func (tr *trial) inject(args []string) {
	tr.Helper()
	file := filepath.Join(fault.Dir, tr.point)
	reached := file + ".reached"
	tr.Cleanup(func() { _, _ = os.Remove(file), os.Remove(reached) })
	what := tr.fault()
	if also := tr.a.also; also != "" {
		if err := os.WriteFile(filepath.Join(fault.Dir, also), []byte(fault.Error), 0o644); err != nil {
			tr.Fatal(err)
		}
		defer func() { _ = os.Remove(filepath.Join(fault.Dir, also+".reached")) }()
	}
	if err := os.WriteFile(file, []byte(what), 0o644); err != nil {
		tr.Fatal(err)
	}
	c := host.Command(tr.TB, tr.Context(), args...)
	c.Stdout, c.Stderr = &tr.cli, &tr.cli
	tr.run(c, func(ended <-chan struct{}) {
		host.Eventually(tr.TB, bootTime, func() error {
			if _, err := os.Lstat(reached); err == nil {
				return nil
			}
			select {
			case <-ended:
				if _, err := os.Lstat(reached); err != nil && !tr.a.isBehind(tr.point) {
					tr.Fatalf("the command ended, and %s was not reached: %s", tr.point, &tr.cli)
				}
			default:
			}
			return fmt.Errorf("%s was not reached", tr.point)
		})
		tr.strike(c)
		if what == fault.Hold {
			_ = os.Remove(reached) // lets it go on
		}
	})
}

// run runs a command; its end, of whatever kind, is waited for.
func (tr *trial) run(c *exec.Cmd, meanwhile func(ended <-chan struct{})) {
	tr.Helper()
	if err := c.Start(); err != nil {
		tr.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = c.Wait() // its code depends on the fault
		tr.code = c.ProcessState.ExitCode()
		close(ended)
	}()
	defer func() { <-ended }()
	meanwhile(ended)
}

// strike does to the programs what the kind says. Errors of kill are about
// processes that have ended.
func (tr *trial) strike(c *exec.Cmd) {
	tr.Helper()
	kill := func(unit string) {
		pid := host.PID(unit)
		if pid == 0 {
			return
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		host.Eventually(tr.TB, 20*time.Second, func() error {
			if host.PID(unit) == pid {
				return fmt.Errorf("%s does not end", unit)
			}
			return nil
		})
	}
	switch tr.k {
	case killCLI:
		_ = c.Process.Kill()
	case killDaemon:
		kill("bangerd.service")
	case killHelper:
		kill("banger-helper.service")
	case killVMM:
		if tr.point == "launch.started" { // its process may be about to begin
			host.Eventually(tr.TB, 10*time.Second, func() error {
				if host.PID(tr.before.Unit) == 0 {
					return errors.New("the unit has no process")
				}
				return nil
			})
		}
		kill(tr.before.Unit)
	case cancelled:
		for _, op := range tr.m.underWay(tr.TB) {
			if err := tr.m.c.CancelOperation(tr.Context(), op.ID); err != nil {
				tr.Error(err)
			}
		}
	}
}

// settle waits until the VM is as it may be and nothing happens to it any more.
func (tr *trial) settle() {
	tr.Helper()
	want := tr.a.ends(tr.point, tr.k)
	host.Eventually(tr.TB, bootTime, func() error {
		if ops := tr.m.underWay(tr.TB); len(ops) > 0 {
			return fmt.Errorf("%s is under way", ops[0].Kind)
		}
		is, reason := gone, ""
		tr.after = nil
		v, err := tr.m.c.VM(tr.Context(), tr.before.Name)
		switch {
		case err == nil:
			tr.after, is, reason = &v, v.State, v.Reason
		case !isGone(err):
			return err
		}
		if is != want {
			return fmt.Errorf("it is %s %s, want %s", is, reason, want)
		}
		return nil
	})
}

// check looks at what the fault has left.
func (tr *trial) check() {
	t, m := tr.TB, tr.m
	t.Helper()
	m.by.ask(t)
	tr.told()
	if tr.after == nil {
		m.victim = nil
		m.vanished(t, tr.before)
		return
	}
	t.Logf("%s %s", tr.after.State, tr.after.Reason)
	if tr.after.State == api.StateFailed && tr.after.Reason == "" {
		t.Error("it failed without a reason")
	}
	if tr.after.State != api.StateRunning {
		m.onlyBaseline(t)
		if host.Resolves(t, tr.before.Name) {
			t.Error("its name is still served")
		}
		op, err := m.c.StartVM(t.Context(), tr.before.Name, false)
		m.done(t, op, err)
	}
	m.answers(t, tr.before.Name)
	if !host.Resolves(t, tr.before.Name) {
		t.Error("its name is not served")
	}
	if tr.a.check != nil {
		tr.a.check(tr, tr.k)
	}
}

// told checks that whoever asked was told the truth.
func (tr *trial) told() {
	tr.Helper()
	if tr.k == stalled && tr.a.isStart(tr.point) {
		late, phase := "it took longer than start_timeout ("+shortTime+")", phaseOf(tr.point)+": "
		if tr.after == nil || !strings.Contains(tr.after.Reason, late) || !strings.Contains(tr.after.Reason, phase) {
			tr.Errorf("the reason does not say %q and %q", late, phase)
		}
	}
	unheard := tr.k == killCLI || tr.k == killDaemon
	late := tr.k == killVMM && tr.point == "start.persist" // it had succeeded
	if tr.a.tells == "" || unheard || late {
		return
	}
	is := gone
	if tr.after != nil {
		is = tr.after.State
	}
	if (tr.code == 0) != (is == tr.a.tells) {
		tr.Errorf("the command ended with %d, and the VM is %s", tr.code, is)
	}
}
