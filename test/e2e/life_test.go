//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
)

func TestPauseRefusesCommandsAndResumeGoesOn(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	boot := must(t, "vm", "exec", vm.Name, "--", "cat", "/proc/sys/kernel/random/boot_id")
	must(t, "vm", "pause", vm.Name)
	for what, args := range map[string][]string{
		"exec": {"vm", "exec", vm.Name, "--", "true"}, "health": {"vm", "health", vm.Name}, "ping": {"vm", "ping", vm.Name},
		"pause again": {"vm", "pause", vm.Name}, "start": {"vm", "start", vm.Name}, "delete": {"vm", "delete", vm.Name},
	} {
		begun := time.Now()
		r := banger(t, args...)
		if r.Code == 0 || !strings.Contains(r.Stderr, "paused") || !strings.Contains(r.Stderr, "hint: ") || time.Since(begun) > 5*time.Second {
			t.Errorf("%s: %+v after %s", what, r, time.Since(begun))
		}
	}
	root(t, "systemctl", "restart", "bangerd")
	if v := show(t, vm.Name); v.State != api.StatePaused {
		t.Errorf("after a restart of bangerd: %s", v.State)
	}
	must(t, "vm", "resume", vm.Name)
	if now := must(t, "vm", "exec", vm.Name, "--", "cat", "/proc/sys/kernel/random/boot_id"); now != boot {
		t.Errorf("boot id %q, was %q", now, boot)
	}
	// A paused one is stopped through its guest, and killed without it.
	must(t, "vm", "exec", vm.Name, "--", "sh", "-c", "echo kept >/var/kept")
	must(t, "vm", "pause", vm.Name)
	must(t, "vm", "stop", vm.Name)
	must(t, "vm", "start", vm.Name)
	if got := must(t, "vm", "exec", vm.Name, "--", "cat", "/var/kept"); got != "kept\n" {
		t.Errorf("got %q", got)
	}
	must(t, "vm", "pause", vm.Name)
	must(t, "vm", "kill", vm.Name)
	wantGone(t, vm.ID, 15*time.Second)
	if v := show(t, vm.Name); v.State != api.StateStopped {
		t.Errorf("state %s", v.State)
	}
}

func TestSettingsHoldAfterARestart(t *testing.T) {
	leavesNothing(t)
	vm := running(t, "--memory", "256M")
	for what, args := range map[string][]string{
		"on this host":  {"vm", "set", vm.Name, "--vcpu", "32"},
		"of memory are": {"vm", "set", vm.Name, "--memory", "1T"},
		"no image":      {"vm", "set", vm.Name, "--image", "nope"},
		"looks like":    {"vm", "set", vm.Name, "--name", "0123456789ab"},
	} {
		if r := banger(t, args...); r.Code == 0 || !strings.Contains(r.Stderr, what) {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if now := show(t, vm.Name); now.VCPU != vm.VCPU || now.MemoryMiB != vm.MemoryMiB || now.Stale != nil {
		t.Errorf("a refused change changed something: %+v", now)
	}
	r := banger(t, "vm", "set", vm.Name, "--memory", "320M", "--autostart", "--restart", "on-failure")
	if r.Code != 0 || !strings.Contains(r.Stderr, "memory will hold after a restart") || !strings.Contains(r.Stderr, "banger vm restart") {
		t.Errorf("%+v", r)
	}
	old := vm.Guest.BootID
	must(t, "vm", "restart", vm.Name)
	now := show(t, vm.Name)
	if now.State != api.StateRunning || now.Guest == nil || now.Guest.BootID == old || len(now.Stale) != 0 || !now.Autostart || now.Restart != api.RestartOnFailure {
		t.Errorf("%+v", now)
	}
	var op []api.Operation
	if err := json.Unmarshal([]byte(must(t, "operation", "list", "--json")), &op); err != nil || len(op) == 0 {
		t.Fatalf("%v: %+v", err, op)
	}
	last := op[len(op)-1]
	if last.Kind != "vm.restart" || last.Stages[0].Name != "stop_guest" || last.Stages[len(last.Stages)-1].Name != "finalize" {
		t.Errorf("a restart has the stages of both: %+v", last)
	}
}

func TestFiguresGrowAndTheirEndIsTold(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	figures := func() api.Stats {
		t.Helper()
		var answers []struct{ Stats api.Stats }
		if err := json.Unmarshal([]byte(must(t, "vm", "stats", "--json", vm.Name)), &answers); err != nil || len(answers) != 1 {
			t.Fatalf("%v: %+v", err, answers)
		}
		return answers[0].Stats
	}
	before := figures()
	must(t, "vm", "exec", vm.Name, "--", "sh", "-c", "head -c 8000000 /dev/urandom >/var/some; sync")
	after := figures()
	if after.CPUMicros <= before.CPUMicros || after.WriteBytes < before.WriteBytes+8000000 || after.MemoryBytes < 16<<20 || after.MemoryLimit < after.MemoryBytes || after.Tasks < 2 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	c := command(t, t.Context(), "vm", "stats", "--watch", "--json", vm.Name)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.Contains(lines.Text(), vm.ID) {
		t.Errorf("got %q", lines.Text())
	}
	must(t, "vm", "kill", vm.Name)
	for lines.Scan() { // up to the end
	}
	_ = c.Wait() // its code is what counts
	if code := c.ProcessState.ExitCode(); code != 1 || !strings.Contains(errs.String(), "cannot measure VM") {
		t.Errorf("exit %d, %q", code, errs.String())
	}
	if r := banger(t, "vm", "stats", vm.Name); r.Code != 1 || !strings.Contains(r.Stderr, "it is stopped") {
		t.Errorf("%+v", r)
	}
}

func TestTheConsoleIsShownWithoutItsControlCharacters(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	c := command(t, t.Context(), "vm", "logs", "-f", "--since", "1m", vm.Name)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	must(t, "vm", "exec", vm.Name, "--", "sh", "-c", `printf '\033[31mmar\033[0mker\007 one\n' >/dev/console`)
	found := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "marker one") {
				found <- lines.Text()
				return
			}
		}
		found <- ""
	}()
	select {
	case got := <-found:
		if strings.ContainsAny(got, "\x1b\x07") || got == "" {
			t.Errorf("got %q", got)
		}
	case <-time.After(30 * time.Second):
		t.Error("the line does not come")
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // its code is what counts
	if code := c.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit %d", code)
	}
	if got := must(t, "vm", "logs", "--raw", vm.Name); !strings.Contains(got, "\x1b[31mmar") {
		t.Error("--raw is not what the guest wrote")
	}
	eventually(t, 5*time.Second, func() error { // the follower's journalctl has ended with it
		for _, comm := range glob(t, "/proc/[0-9]*/comm") {
			raw, err := os.ReadFile(comm) // it may end in this moment
			args, _ := os.ReadFile(filepath.Join(filepath.Dir(comm), "cmdline"))
			if err == nil && string(raw) == "journalctl\n" && strings.Contains(string(args), vm.ID) {
				return errors.New("a journalctl is left")
			}
		}
		return nil
	})
	if r := banger(t, "vm", "logs", "nope"); r.Code != 1 || !strings.Contains(r.Stderr, "there is no VM") {
		t.Errorf("%+v", r)
	}
}

func TestEventsTellTheLifeOfAVM(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	c := command(t, t.Context(), "vm", "events", "-f", "--json", vm.Name)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("nothing is told")
	}
	root(t, "systemctl", "restart", "bangerd") // survived
	must(t, "vm", "pause", vm.Name)
	must(t, "vm", "resume", vm.Name)
	must(t, "vm", "kill", vm.Name)
	must(t, "vm", "delete", vm.Name)
	seen := []string{}
	for lines.Scan() { // it ends with the VM
		var e api.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		seen = append(seen, string(e.Kind)+" "+string(e.State))
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	if got := strings.Join(seen, ", "); !strings.HasSuffix(got, "state paused, state running, state stopping, state stopped, state deleted") {
		t.Errorf("told %s", got)
	}
	if r := banger(t, "vm", "events", vm.Name); r.Code != 1 || !strings.Contains(r.Stderr, "there is no VM") {
		t.Errorf("%+v", r)
	}
}

func TestManyAreAnsweredInOrder(t *testing.T) {
	leavesNothing(t)
	one, two := running(t), running(t)
	r := banger(t, "vm", "stop", two.Name, "nope", one.Name)
	if r.Code != 1 || r.Stdout != two.Name+"\n"+one.Name+"\n" || strings.Count(r.Stderr, "cannot stop nope") != 1 {
		t.Errorf("%+v", r)
	}
	r = banger(t, "vm", "prune")
	if r.Code != 2 || !strings.Contains(r.Stderr, "--force") {
		t.Errorf("%+v", r)
	}
	if r := banger(t, "vm", "prune", "--force", "--older-than", "1h"); r.Code != 0 || r.Stdout != "" {
		t.Errorf("%+v", r)
	}
	if r := banger(t, "vm", "prune", "--dry-run"); r.Code != 0 || !strings.Contains(r.Stdout, one.Name+"\n") || !strings.Contains(r.Stdout, two.Name+"\n") {
		t.Errorf("%+v", r)
	}
	if r := banger(t, "vm", "prune", "--force"); r.Code != 0 || !strings.Contains(r.Stdout, one.Name+"\n") || !strings.Contains(r.Stdout, two.Name+"\n") {
		t.Errorf("%+v", r)
	}
}

// A banger that is killed, and one that was killed while bangerd was away.
func TestKilledRunLeavesNoVM(t *testing.T) {
	leavesNothing(t)
	for _, away := range []bool{false, true} {
		name := fmt.Sprintf("killed-%v", away)
		c := command(t, t.Context(), "vm", "run", "--rm", "--name", name, "--", "sh", "-c", "echo up; exec sleep 1000")
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		vm := show(t, name)
		root(t, "systemctl", "restart", "bangerd")
		// It outlives the restart: whoever wants it has come back.
		eventually(t, 10*time.Second, func() error {
			if r := banger(t, "vm", "exec", name, "--", "true"); r.Code != 0 {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		within := 30 * time.Second
		if away {
			root(t, "systemctl", "stop", "bangerd.service")
			within = 75 * time.Second
		}
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait() // it was killed
		must(t, "vm", "list")
		eventually(t, within, func() error {
			if r := banger(t, "vm", "show", name); r.Code == 0 {
				return errors.New("it is still there")
			}
			return nil
		})
		wantGone(t, vm.ID, 15*time.Second)
	}
}

func TestPortsAreListed(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	c := command(t, t.Context(), "vm", "exec", vm.Name, "--", "systemd-socket-activate", "-l", "7070", "/bin/true")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait() // it was killed
	}()
	eventually(t, 30*time.Second, func() error {
		var answers []struct{ Ports []api.Port }
		r := banger(t, "vm", "ports", "--json", vm.Name)
		if json.Unmarshal([]byte(r.Stdout), &answers) != nil || r.Code != 0 || len(answers) != 1 {
			return fmt.Errorf("%+v", r)
		}
		for _, p := range answers[0].Ports {
			if p.Port == 7070 && p.Protocol == "tcp" && p.Address != "" && strings.HasPrefix(p.Process, "systemd-socket") {
				return nil
			}
		}
		return fmt.Errorf("it does not listen: %s", r.Stdout)
	})
}
