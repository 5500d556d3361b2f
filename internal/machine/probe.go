package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/api"
)

// accelVariable forces a way to run machines; meant for tests and for hosts
// that the probe misjudges.
const accelVariable = "BANGER_MACHINE_ACCEL"

// probeTimeout bounds the probe. A working KVM needs two seconds for it; one
// that needs more is no gain over emulation.
const probeTimeout = 10 * time.Second

// probeDone is what the probe's guest says at its end.
const probeDone = "banger-probe-done"

// probeResult is remembered for as long as the host is up.
type probeResult struct {
	BootID string `json:"boot_id"`
	Accel  string `json:"accel"`
	// Silent counts probes that said nothing until their time was over. One may
	// be the fault of a busy host, so the next command tries again; two are an
	// answer.
	Silent int `json:"silent,omitempty"`
}

// settled tells whether r answers for the boot.
func (r probeResult) settled(boot string) bool {
	return r.BootID == boot && (r.Silent == 0 || r.Silent >= 2)
}

// after returns what is known after one more probe.
func (r probeResult) after(boot string, v verdict, console string) probeResult {
	next := probeResult{BootID: boot, Accel: accelTCG}
	switch {
	case v == spoke && nestsGuests(console):
		next.Accel = accelKVM
	case v == silent && r.BootID == boot:
		next.Silent = r.Silent + 1
	case v == silent:
		next.Silent = 1
	}
	return next
}

// verdict is how a probe ended.
type verdict int

const (
	ended  verdict = iota // QEMU gave up: KVM cannot run a guest
	spoke                 // the guest came to its last word
	silent                // the time was over before either
)

// pickAccel decides how to run the guest whose kernel and initrd are in dir.
// Capabilities say nothing: there are software KVMs that report all of them
// and cannot run a kernel. So a guest is run.
func pickAccel(ctx context.Context, dir string, p Progress) (string, error) {
	switch forced := os.Getenv(accelVariable); forced {
	case "":
	case accelKVM, accelTCG:
		return forced, nil
	default:
		return "", api.BadRequest("%s is %q", accelVariable, forced).WithHint("use kvm or tcg")
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return accelTCG, nil // absent, or not for this user
	}
	if err := kvm.Close(); err != nil {
		return "", err
	}
	boot, err := bootID()
	if err != nil {
		return "", err
	}
	c, err := openCache()
	if err != nil {
		return "", err
	}
	memory := filepath.Join(c.dir, "kvm-probe.json")
	var known probeResult
	if text, err := os.ReadFile(memory); err == nil && json.Unmarshal(text, &known) == nil && known.settled(boot) {
		return known.Accel, nil
	}
	p.step("trying whether this host's KVM can run a guest")
	console, v, err := runProbe(ctx, dir)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", err
	}
	result := known.after(boot, v, console)
	return result.Accel, writeJSON(memory, result)
}

// runProbe boots the appliance's kernel with KVM up to a process that tells
// the processor's flags on the console, and returns the console.
func runProbe(parent context.Context, dir string) (console string, v verdict, err error) {
	program, err := lookTool(qemu)
	if err != nil {
		return "", ended, err
	}
	ctx, cancel := context.WithTimeout(parent, probeTimeout)
	defer cancel()
	args := append([]string{"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		"-M", "q35", "-smp", "2", "-m", "512"}, accelArgs(accelKVM)...)
	cmd := exec.CommandContext(ctx, program, append(args, "-kernel", kernelFile, "-initrd", initrdFile,
		"-append", `console=ttyS0 quiet panic=-1 rdinit=/bin/sh -- -c "mkdir -p /proc; mount -t proc proc /proc; cat /proc/cpuinfo; echo `+probeDone+`"`,
		"-serial", "stdio")...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return "", ended, fmt.Errorf("cannot try KVM: %w", err)
	}
	var b strings.Builder
	lines := bufio.NewScanner(out)
	for v != spoke && lines.Scan() {
		fmt.Fprintln(&b, lines.Text())
		if strings.HasPrefix(lines.Text(), probeDone) {
			v = spoke
		}
	}
	if v != spoke && ctx.Err() != nil {
		v = silent
	}
	cancel()
	_ = cmd.Wait() // killed by us, or dead: what it printed is the answer
	return b.String(), v, nil
}

var virtualisation = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?m)^flags\s*:.* (vmx|svm)( |\r?$)`) })

// nestsGuests tells whether the processor described by cpuinfo lets its own
// guests run guests, as the appliance must.
func nestsGuests(cpuinfo string) bool { return virtualisation().MatchString(cpuinfo) }
