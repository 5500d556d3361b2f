package machine

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"banger/api"
)

// command is a program of the host that runs to its end.
type command struct {
	argv   []string
	env    []string // added to the environment
	dir    string
	stdin  io.Reader
	stdout io.Writer // nil: not shown
	// own keeps the terminal's Ctrl-C away from the program; it then gets one
	// SIGINT, from us, and time to clean up behind itself.
	own bool
}

// runTool runs c. Its output is not shown; where it fails, the end of what it
// said is part of the error.
func runTool(ctx context.Context, c command) error {
	program, err := lookTool(c.argv[0])
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, c.argv[1:]...)
	cmd.Dir, cmd.Stdin = c.dir, c.stdin
	cmd.Env = append(os.Environ(), c.env...)
	said := &tail{}
	cmd.Stdout, cmd.Stderr = c.stdout, said
	if c.stdout == nil {
		cmd.Stdout = said
	}
	cmd.WaitDelay = 30 * time.Second // a program that heeds SIGINT is gone long before
	if c.own {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	}
	err = cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("%s: %w\n%s", c.argv[0], err, said)
}

// tail keeps the last lines written to it.
type tail struct{ text []byte }

const tailSize = 2000

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if over := len(t.text) - 2*tailSize; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return lastLines(t.text) }

// lastLines returns the end of text, indented, without the control characters
// a guest's console is full of.
func lastLines(text []byte) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0x7f {
			return -1
		}
		return r
	}, string(text[max(0, len(text)-tailSize):]))
	lines := strings.Split(strings.TrimSpace(clean), "\n")
	lines = lines[max(0, len(lines)-15):]
	return "    " + strings.Join(lines, "\n    ")
}

// packageOf names the package that brings a program on Debian and Ubuntu.
var packageOf = map[string]string{
	"qemu-system-x86_64": "qemu-system-x86",
	"qemu-img":           "qemu-utils",
	"mmdebstrap":         "mmdebstrap",
	"mke2fs":             "e2fsprogs",
	"fakeroot":           "fakeroot",
	"ssh":                "openssh-client",
	"ssh-keygen":         "openssh-client",
	"newuidmap":          "uidmap",
}

// lookTool finds a program, also where the PATH of ordinary users does not lead.
func lookTool(program string) (string, error) {
	for _, name := range []string{program, "/usr/sbin/" + program, "/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	p := api.Problemf(412, api.CodePrerequisite, "the program %s is not installed", program)
	if pkg := packageOf[program]; pkg != "" {
		p = p.WithHint("install the package %s (its name on Debian and Ubuntu)", pkg)
	}
	return "", p
}

// requireTools tells of the first of programs that this host lacks, before
// minutes are spent on what comes earlier.
func requireTools(programs ...string) error {
	for _, program := range programs {
		if _, err := lookTool(program); err != nil {
			return err
		}
	}
	return nil
}
