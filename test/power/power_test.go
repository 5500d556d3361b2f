//go:build power

// Package power takes the power from a host at random moments of a VM's starts
// and stops. The host is a machine made for it, whose QEMU is killed; this test
// runs outside: make test-power. POWER_CYCLES says how many times (20),
// POWER_SEED repeats a run's choices.
package power

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/machine"
)

const machineName = "power"

// tinyScript makes an image of one program, since what boots quickly leaves more
// of the time to the moments that count.
const tinyScript = `set -e; cd "$(mktemp -d)"; mkdir -p bin etc root; cp /usr/bin/busybox bin/
for a in sh cat sync true; do ln -s busybox bin/$a; done; echo root:x:0:0::/root:/bin/sh >etc/passwd
tar -cf ../tiny.tar . && banger image import tiny ../tiny.tar`

func TestPowerLoss(t *testing.T) {
	n, seed := number(t, "POWER_CYCLES", 20), number(t, "POWER_SEED", int(time.Now().UnixNano()%1e9))
	t.Logf("%d cycles, POWER_SEED=%d", n, seed)
	random := rand.New(rand.NewPCG(uint64(seed), 1))
	h := newHost(t)
	h.must("sh", "-c", tinyScript)
	h.must("banger", "vm", "create", "--no-start", "--name", "bystander", "--image", "tiny")
	begun := time.Now()
	h.must("banger", "vm", "create", "--name", "subject", "--image", "tiny", "--memory", "128M", "--disk", "64M", "--nat")
	longest := time.Since(begun)
	for i := range n {
		// What it has fsynced, on both disks, has to be there ever after.
		word := fmt.Sprintf("word-%d", i)
		h.must("banger", "vm", "exec", "subject", "--", "sh", "-c", "echo "+word+" >/kept; echo "+word+" >/root/kept; sync")
		verb, within := "stop", longest/3 // a stop is the shorter of the two
		if random.IntN(2) == 1 {
			verb, within = "start", longest
			h.must("banger", "vm", "stop", "subject")
		}
		after := time.Duration(random.Int64N(int64(within)))
		h.cut(after, "banger", "vm", verb, "subject")
		state := h.check()
		h.must("banger", "vm", "start", "subject")
		if got := h.must("banger", "vm", "exec", "subject", "--", "sh", "-c", "cat /kept /root/kept"); got != word+"\n"+word+"\n" {
			t.Fatalf("cycle %d: the VM has %q, want %q", i, got, word)
		}
		t.Logf("cycle %d: no power %.1fs after %s began; it was %s", i, after.Seconds(), verb, state)
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

// host is the machine that loses its power.
type host struct {
	*testing.T
	m *machine.Machine
}

// newHost makes the machine. It is not a disposable one, which would lose with
// its QEMU what it was promised to keep.
func newHost(t *testing.T) *host {
	t.Helper()
	build := os.Getenv("POWER_BUILD")
	if build == "" {
		t.Fatal("POWER_BUILD is the directory with data/ and the programs in lab-bin/: use make test-power")
	}
	t.Setenv("XDG_DATA_HOME", filepath.Join(build, "data"))
	m, err := machine.New(machineName)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithoutCancel(t.Context())
	if err := m.Remove(ctx); err != nil { // of a run that was killed
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	h := &host{t, m}
	if err := m.Init(t.Context(), machine.InitOptions{Binaries: filepath.Join(build, "lab-bin")}, h.progress); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) progress(text string) { h.Log(text) }

// command has a connection of its own: a shared one does not notice that its host
// is without power.
func (h *host) command(ctx context.Context, argv []string) *exec.Cmd {
	c := h.m.SSHCommand(ctx, machine.Owner, false, argv...)
	c.Args = slices.Insert(c.Args, 1, "-o", "ControlPath=none")
	return c
}

// must runs a command in the machine.
func (h *host) must(argv ...string) string {
	h.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(h.Context(), 5*time.Minute)
	defer cancel()
	c := h.command(ctx, argv)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		h.Fatalf("%v: %v\n%s%s", argv, err, &out, &errs)
	}
	return out.String()
}

// cut begins a command in the machine, takes the power away, and gives it back.
func (h *host) cut(after time.Duration, argv ...string) {
	h.Helper()
	s, err := h.m.Status()
	if err != nil || s.PID == 0 {
		h.Fatalf("the machine does not run: %+v, %v", s, err)
	}
	c := h.command(h.Context(), argv)
	if err := c.Start(); err != nil {
		h.Fatal(err)
	}
	<-time.After(after)
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		h.Fatal(err)
	}
	// QEMU is this process's child, and counts as running until it is buried, which
	// package machine does too.
	if _, err := syscall.Wait4(s.PID, nil, 0, nil); err != nil && !errors.Is(err, syscall.ECHILD) {
		h.Fatal(err)
	}
	_ = c.Process.Kill() // it would wait for an answer
	_ = c.Wait()
	if err := h.m.Start(h.Context(), h.progress); err != nil {
		h.Fatal(err)
	}
}

// check looks at what is there after a boot, and returns how the subject is.
func (h *host) check() string {
	h.Helper()
	vms := h.list()
	subject := vms["subject"]
	if len(vms) != 2 || vms["bystander"].State != api.StateCreated {
		h.Fatalf("the VMs are %+v", vms)
	}
	if subject.State != api.StateStopped && (subject.State != api.StateFailed || subject.Reason == "") {
		h.Errorf("the VM is %s (%s)", subject.State, subject.Reason)
	}
	h.wantNothingLeft(vms)
	return string(subject.State) + " (" + subject.Reason + ")"
}

// list returns the VMs by name.
func (h *host) list() map[string]api.VM {
	h.Helper()
	var vms []api.VM
	if err := json.Unmarshal([]byte(h.must("banger", "vm", "list", "--json")), &vms); err != nil {
		h.Fatal(err)
	}
	named := map[string]api.VM{}
	for _, v := range vms {
		named[v.Name] = v
	}
	return named
}

// wantNothingLeft looks for what there is beside the disks of VMs that do not run.
func (h *host) wantNothingLeft(vms map[string]api.VM) {
	h.Helper()
	ids := map[string]bool{}
	for _, v := range vms {
		ids[v.ID] = true
	}
	left := h.must("sh", "-c", "ls /var/lib/banger/vms; ls /sys/class/block | grep ^dm- || true; ls /sys/class/net | grep ^tap || true")
	for word := range strings.FieldsSeq(left) {
		if !ids[word] {
			h.Errorf("left behind: %s", word)
		}
	}
}
