//go:build e2e && faults

package faults

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/client"
	"banger/test/host"
)

// atOnce is how many VMs are made, and killed, side by side.
const atOnce = 4

// TestKillCycles makes VMs and kills at random moments whoever makes them: the
// CLI, bangerd, the helper. Nothing may be left, and in the second half, in which
// only CLIs die, the services may not grow. FAULTS_CYCLES says how many,
// FAULTS_SEED repeats a run's choices.
func TestKillCycles(t *testing.T) {
	n, seed := number(t, "FAULTS_CYCLES", 200), number(t, "FAULTS_SEED", int(time.Now().UnixNano()%1e9))
	if spread() && os.Getenv("FAULTS_CYCLES") == "" {
		n = 24
	}
	t.Logf("%d cycles, FAULTS_SEED=%d", n, seed)
	c, err := client.New("")
	if err != nil {
		t.Fatal(err)
	}
	tidy(t, c)
	host.ImportTiny(t, tinyImage)
	t.Cleanup(func() { host.Must(t, "image", "delete", tinyImage) })
	begun := time.Now()
	host.Must(t, "vm", "run", "-d", "--name", "cycle-0", "--image", tinyImage, "--memory", "128M")
	first, err := c.VM(t.Context(), "cycle-0")
	if err != nil {
		t.Fatal(err)
	}
	host.Must(t, "vm", "delete", "--force", first.Name)
	host.WantGone(t, first.ID, time.Minute) // the rest follows behind the answer, and would count
	cy := &cycles{T: t, c: c, random: rand.New(rand.NewPCG(uint64(seed), 1)), longest: 3 * time.Since(begun),
		deletes: map[string]bool{}}
	baseline, files, slots := host.Inventory(t), host.VMFiles(t), len(host.Slots(t))
	nothingLeft := func() {
		t.Helper()
		host.Eventually(t, 3*time.Minute, func() error {
			if err := cy.late(); err != nil {
				return err
			}
			if now := host.Inventory(t); !slices.Equal(now, baseline) {
				return fmt.Errorf("left behind: %s", difference(now, baseline))
			}
			if now := host.VMFiles(t); !slices.Equal(now, files) {
				return fmt.Errorf("left behind: %s", difference(now, files))
			}
			if now := host.Slots(t); len(now) != slots {
				return fmt.Errorf("%d slots are taken, %d were", len(now), slots)
			}
			return nil
		})
	}
	cy.run(n/2, []string{"cli", "bangerd.service", "banger-helper.service"})
	nothingLeft()
	warm := func() { // what is made once is made, and what is kept for the next call
		t.Helper()
		cy.run(atOnce, []string{"cli"})
		nothingLeft()
	}
	warm()
	goroutines := services(t, dump) // which ends the services
	warm()
	open, memory := services(t, descriptors), services(t, resident)
	cy.run(n-n/2, []string{"cli"})
	nothingLeft()
	for _, m := range []struct {
		what        string
		before, now map[string]int
		most        int
	}{
		{"descriptors", open, services(t, descriptors), 8}, // idle connections come and go
		{"KiB of memory", memory, services(t, resident), 16 << 10},
		{"goroutines", goroutines, services(t, dump), 10},
	} {
		t.Logf("%s: %v, after %d cycles %v", m.what, m.before, n-n/2, m.now)
		for unit, before := range m.before {
			if m.now[unit] > before+m.most {
				t.Errorf("%s has grown from %d to %d %s", unit, before, m.now[unit], m.what)
			}
		}
	}
}

func number(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

type cycles struct {
	*testing.T
	c       *client.Client
	longest time.Duration // until something is killed

	mu     sync.Mutex
	random *rand.Rand
	made   int
	// deletes are the VMs that nobody but the test deletes.
	deletes map[string]bool
	last    time.Time // when a service was killed
	failed  bool
}

// plan is one cycle: what is run, and who is killed when.
type plan struct {
	name    string
	args    []string
	victim  string
	after   time.Duration
	deletes bool // nobody else does
}

func (cy *cycles) plan(victims []string) plan {
	cy.mu.Lock()
	defer cy.mu.Unlock()
	cy.made++
	p := plan{name: fmt.Sprintf("cycle-%d", cy.made), victim: victims[cy.random.IntN(len(victims))],
		after: time.Duration(cy.random.Int64N(int64(cy.longest))), deletes: cy.random.IntN(3) == 0}
	spec := []string{"--name", p.name, "--image", tinyImage, "--memory", "128M", "--nat"}
	if p.deletes {
		cy.deletes[p.name] = true
		p.args = slices.Concat([]string{"vm", "create"}, spec)
	} else {
		p.args = slices.Concat([]string{"vm", "run", "--rm"}, spec, []string{"--", "sh", "-c", "sleep 60"})
	}
	return p
}

// run runs n cycles, some at once.
func (cy *cycles) run(n int, victims []string) {
	cy.Helper()
	todo := make(chan plan)
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for p := range todo {
				cy.cycle(p)
			}
		})
	}
	for range n {
		todo <- cy.plan(victims)
	}
	close(todo)
	workers.Wait()
	if cy.failed {
		cy.Fatal(host.Journal(100))
	}
}

func (cy *cycles) cycle(p plan) {
	var said bytes.Buffer
	c := host.Session(cy.T, p.args...)
	c.Stdout, c.Stderr = &said, &said
	if err := c.Start(); err != nil {
		cy.complain("%v", err)
		return
	}
	ended := make(chan struct{})
	go func() { _ = c.Wait(); close(ended) }() // its code depends on the moment
	select {
	case <-time.After(p.after):
	case <-ended:
	}
	cy.kill(p, c)
	// A CLI whose bangerd was killed may go on; it has been long enough.
	select {
	case <-ended:
	case <-time.After(cy.longest):
		_ = c.Process.Kill()
		<-ended
	}
	if p.deletes {
		cy.remove(p.name)
	}
	cy.Logf("%s: %s killed after %.1fs; it said %q", p.name, p.victim, p.after.Seconds(), said.String())
}

// between is what passes between two kills of a service: systemd gives up one
// that ends five times in ten seconds.
const between = 4 * time.Second

func (cy *cycles) kill(p plan, c *exec.Cmd) {
	if p.victim == "cli" {
		_ = c.Process.Kill() // it may have ended
		return
	}
	cy.mu.Lock()
	wait := time.Until(cy.last.Add(between))
	cy.last = time.Now().Add(max(wait, 0))
	cy.mu.Unlock()
	<-time.After(max(wait, 0))
	if pid := host.PID(p.victim); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may be between two lives
	}
}

// remove deletes a VM, in spite of services that are killed meanwhile.
func (cy *cycles) remove(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	for {
		op, err := cy.c.DeleteVM(ctx, name, true)
		if isGone(err) {
			return
		}
		if err == nil {
			op, err = cy.c.Watch(ctx, op.ID, nil)
		}
		if err == nil && op.Status == api.OperationSucceeded {
			return
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			cy.complain("cannot delete %s: %v %+v", name, err, op.Error)
			return
		}
	}
}

// late looks for VMs that are left, and removes those that nobody else would: a
// CLI that was killed at once has its VM made after remove found none.
func (cy *cycles) late() error {
	vms, err := cy.c.VMs(cy.Context())
	if err != nil {
		return err
	}
	for _, v := range vms {
		if !strings.HasPrefix(v.Name, "cycle-") {
			continue
		}
		if cy.deletes[v.Name] {
			cy.remove(v.Name)
		}
		return fmt.Errorf("VM %s is left, %s", v.Name, v.State)
	}
	return nil
}

func (cy *cycles) complain(format string, args ...any) {
	cy.mu.Lock()
	defer cy.mu.Unlock()
	cy.failed = true
	cy.Errorf(format, args...)
}

// services measures both.
func services(t *testing.T, f func(t *testing.T, unit string) int) map[string]int {
	t.Helper()
	host.Banger(t, "doctor", "--json") // the helper may have left; there may be warnings
	out := map[string]int{}
	for _, unit := range []string{"bangerd.service", "banger-helper.service"} {
		out[unit] = f(t, unit)
	}
	return out
}

func descriptors(t *testing.T, unit string) int {
	t.Helper()
	return len(host.Glob(t, fmt.Sprintf("/proc/%d/fd/*", host.PID(unit))))
}

func resident(t *testing.T, unit string) int {
	t.Helper()
	kib, err := strconv.Atoi(strings.TrimSuffix(host.Status(t, host.PID(unit))["RssAnon"], " kB"))
	if err != nil {
		t.Fatal(err)
	}
	return kib
}

// dump has a service tell what all its goroutines do, which ends it, and counts
// them. Its last line is what the runtime writes after all of them.
func dump(t *testing.T, unit string) int {
	t.Helper()
	pid := host.PID(unit)
	if pid == 0 {
		t.Fatalf("%s does not run", unit)
	}
	invocation := strings.TrimSpace(host.Root(t, "systemctl", "show", "--property=InvocationID", "--value", unit))
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	host.Eventually(t, 20*time.Second, func() error {
		if host.PID(unit) == pid {
			return fmt.Errorf("%s does not end", unit)
		}
		return nil
	})
	host.Root(t, "journalctl", "--sync")
	// By its invocation too: another process, of an earlier boot or a child of the
	// helper, may have had the number.
	said := host.Root(t, "journalctl", "--no-pager", "--output=cat", "_PID="+strconv.Itoa(pid), "_SYSTEMD_INVOCATION_ID="+invocation)
	n := strings.Count(said, "\ngoroutine ")
	if n == 0 || !strings.Contains(said, "\nrip ") && !strings.Contains(said, "\npc ") {
		t.Fatalf("%s did not tell all:\n%s", unit, said)
	}
	host.Banger(t, "doctor", "--json") // there may be warnings
	return n
}
