package machine

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestIsQEMUOf(t *testing.T) {
	line := func(words ...string) string { return strings.Join(words, "\x00") + "\x00" }
	for name, c := range map[string]struct {
		cmdline string
		want    bool
	}{
		"ours":          {line("/usr/bin/qemu-system-x86_64", "-name", "banger-machine-a", "-m", "1"), true},
		"other machine": {line("/usr/bin/qemu-system-x86_64", "-name", "banger-machine-b"), false},
		"longer name":   {line("/usr/bin/qemu-system-x86_64", "-name", "banger-machine-a2"), false},
		"no QEMU":       {line("vi", "-name", "banger-machine-a"), false},
		"no name":       {line("qemu-system-x86_64", "-name"), false},
		"elsewhere":     {line("qemu-system-x86_64", "-append", "banger-machine-a"), false},
		"kernel thread": {"", false},
	} {
		if got := isQEMUOf([]byte(c.cmdline), "/data/a"); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// sleeper starts a process that is not QEMU.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}

// A pid from the record may belong to anybody by now. Nobody else is hurt.
func TestStrangersAreNotKilled(t *testing.T) {
	cmd := sleeper(t)
	ours, err := newRun(cmd.Process.Pid, 1, accelTCG)
	if err != nil {
		t.Fatal(err)
	}
	otherStart, otherBoot := ours, ours
	otherStart.Started = "1"
	otherBoot.BootID = "another"
	for name, r := range map[string]run{"not QEMU": ours, "other start": otherStart, "other boot": otherBoot} {
		dir := t.TempDir()
		if err := writeJSON(filepath.Join(dir, runFile), r); err != nil {
			t.Fatal(err)
		}
		if err := killRun(dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := unix.Kill(cmd.Process.Pid, 0); err != nil {
			t.Fatalf("%s: the stranger is gone: %v", name, err)
		}
		if _, ok, err := readRun(dir); ok || err != nil {
			t.Errorf("%s: the record is still there (%v)", name, err)
		}
	}
}

func TestQEMUIsKilled(t *testing.T) {
	// sleep under QEMU's name, with the arguments we look for behind "60": it
	// would refuse them, so a shell takes them and sleeps.
	dir := filepath.Join(t.TempDir(), "a")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), sh)
	cmd.Args = []string{"qemu-system-x86_64", "-c", "read forever", "-name", guestName(dir)}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	r, err := newRun(cmd.Process.Pid, 1, accelTCG)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(filepath.Join(dir, runFile), r); err != nil {
		t.Fatal(err)
	}
	m := &Machine{Name: "a", Dir: dir}
	if _, running, err := m.running(); err != nil || !running {
		t.Fatalf("running is %v, %v", running, err)
	}
	if err := killRun(dir); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("it ended well, so it was not killed")
	}
	if _, running, err := m.running(); err != nil || running {
		t.Errorf("running is %v, %v", running, err)
	}
}

func TestWaitEndCanBeCancelled(t *testing.T) {
	fd, err := unix.PidfdOpen(sleeper(t).Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := waitEnd(ctx, fd); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestBrokenRecordIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, runFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := killRun(dir); err == nil {
		t.Error("a QEMU that may run was forgotten")
	}
}
