package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"banger/internal/machine"
)

// autopsy tells all that is known about the lab's end.
func (l *lab) autopsy(died *diedError) string {
	var b strings.Builder
	fmt.Fprintf(&b, "==> THE LAB HAS DIED: %s\n", died.reason)
	if m, err := machine.New(labName); err != nil {
		fmt.Fprintln(&b, err)
	} else if s, err := m.Status(); err != nil {
		fmt.Fprintln(&b, err)
	} else {
		if s.State == machine.Running {
			fmt.Fprintf(&b, "QEMU, process %d, started %s, accelerator %s: %s\n", s.PID, s.StartedAt.Format(time.TimeOnly), s.Accel, process(s.PID))
		} else {
			fmt.Fprintf(&b, "QEMU does not run: the machine is %s\n", s.State)
		}
		for _, name := range []string{"qemu.log", "console.log"} {
			fmt.Fprintf(&b, "--- the end of %s\n%s\n", name, lastLines(filepath.Join(s.Dir, name), 30))
		}
	}
	if now := oomKills(); now != l.hostOOM {
		fmt.Fprintf(&b, "This host's kernel has killed processes for lack of memory meanwhile (%s before, %s now).\n", l.hostOOM, now)
	}
	fmt.Fprintf(&b, "--- this host\n%s%s", grep("/proc/meminfo", "MemTotal:", "MemAvailable:", "SwapFree:"), grep("/proc/pressure/cpu", "some"))
	return b.String()
}

// process tells what a process does: its state, and whether it gets anywhere.
func process(pid int) string {
	state, before, err := ticks(pid)
	if err != nil {
		return err.Error()
	}
	const look = 2 * time.Second
	time.Sleep(look)
	_, after, err := ticks(pid)
	if err != nil {
		return "it ended just now"
	}
	return fmt.Sprintf("state %s, %.1f CPUs busy", state, float64(after-before)/100/look.Seconds())
}

// ticks reads state and CPU time (in 1/100 s) of a process from its stat file,
// where the second field may hold spaces.
func ticks(pid int) (state string, sum int, err error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return "", 0, fmt.Errorf("cannot read the state of process %d", pid)
	}
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return "", 0, err
		}
		sum += n
	}
	return fields[0], sum, nil
}

// lastLines returns the end of a log, without the control characters that a
// console is full of.
func lastLines(path string, n int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	clean := strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, string(text))
	lines := strings.Split(strings.TrimSpace(clean), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// grep returns the lines of a file that begin with one of prefixes.
func grep(path string, prefixes ...string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		for _, p := range prefixes {
			if strings.HasPrefix(line, p) {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// oomKills counts the processes that this host's kernel ever killed for lack of
// memory.
func oomKills() string {
	return strings.TrimSpace(strings.TrimPrefix(grep("/proc/vmstat", "oom_kill "), "oom_kill "))
}
