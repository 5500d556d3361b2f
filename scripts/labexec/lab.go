package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"banger/internal/machine"
)

// Exit statuses of the scripts that labexec runs in the lab.
const (
	statusRebooted = 97  // the lab's boot is not the one the program was started in
	statusSSH      = 255 // ssh's own: there was no connection, or it broke
)

// lab is the machine tests run in.
type lab struct {
	command func(ctx context.Context, fresh bool, argv ...string) *exec.Cmd
	running func() (bool, error)
	// patience is how long the lab may refuse connections before it counts as
	// dead; pause is between two attempts. Nothing tells when a guest that stands
	// still goes on, so it has to be tried.
	patience, pause time.Duration
	// An attempt that lasted longer than connecting had a connection.
	connecting time.Duration
	log        io.Writer

	boot    string // the boot id that was met first
	hostOOM string // kills for lack of memory on this host, when we began
}

func newLab(m *machine.Machine, log io.Writer) *lab {
	return &lab{patience: 5 * time.Minute, pause: 2 * time.Second, connecting: time.Minute, log: log, hostOOM: oomKills(),
		running: func() (bool, error) {
			s, err := m.Status()
			return s.State == machine.Running, err
		},
		command: func(ctx context.Context, fresh bool, argv ...string) *exec.Cmd {
			cmd := m.SSHCommand(ctx, machine.Root, false, argv...)
			if fresh { // not over a shared connection that may be the one that hangs
				cmd.Args = slices.Insert(cmd.Args, 1, "-o", "ControlPath=none")
			}
			// Ctrl-C is for the program over there, and labexec tells it.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			return cmd
		}}
}

// diedError says that the lab is gone, and with it whatever ran there.
type diedError struct{ reason string }

func (e *diedError) Error() string { return "the lab has died: " + e.reason }

// session is a script that runs in the lab until it ends by itself, over as many
// connections as that takes. args and input are asked for each connection, since
// they may have moved on.
type session struct {
	script string
	args   func() []string
	input  func() (io.ReadCloser, error)
	stdout io.Writer
}

// guard keeps a script from running in a lab that has forgotten the program.
const guard = `[ -z "$1" ] || [ "$(cat /proc/sys/kernel/random/boot_id)" = "$1" ] || exit 97; shift; `

// run returns the script's exit status.
func (l *lab) run(ctx context.Context, s session) (int, error) {
	var lost time.Time // when the lab was last known to answer
	for fresh := false; ; fresh = true {
		began := time.Now()
		status, said, err := l.try(ctx, s, fresh)
		switch {
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case err != nil:
			return 0, err
		case status == statusRebooted:
			return 0, &diedError{"its system has booted again"}
		case status != statusSSH:
			return status, nil
		}
		if lost.IsZero() || time.Since(began) > l.connecting {
			lost = time.Now()
		}
		if err := l.mayComeBack(lost); err != nil {
			return 0, err
		}
		fmt.Fprintf(l.log, "labexec: the connection to the lab broke (%s); trying again\n", said)
		select {
		case <-time.After(l.pause):
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// try makes one connection.
func (l *lab) try(ctx context.Context, s session, fresh bool) (status int, said string, err error) {
	var args []string
	if s.args != nil {
		args = s.args()
	}
	cmd := l.command(ctx, fresh, append([]string{"sh", "-c", guard + s.script, "sh", l.boot}, args...)...)
	// A file, since a shared connection that ssh leaves behind would keep a pipe open.
	errs, err := os.CreateTemp("", "labexec-")
	if err != nil {
		return 0, "", err
	}
	defer errs.Close()
	if err := os.Remove(errs.Name()); err != nil {
		return 0, "", err
	}
	cmd.Stdout, cmd.Stderr = s.stdout, errs
	if s.input != nil {
		in, err := s.input()
		if err != nil {
			return 0, "", err
		}
		defer in.Close()
		cmd.Stdin = in
	}
	err = cmd.Run()
	if cmd.ProcessState == nil {
		return 0, "", fmt.Errorf("cannot run ssh: %w", err)
	}
	if status = cmd.ProcessState.ExitCode(); status == 0 && err != nil {
		return 0, "", err // of what we gave it to read, or where its output goes
	}
	text, err := io.ReadAll(io.NewSectionReader(errs, 0, 1<<16))
	if err != nil {
		return 0, "", err
	}
	said = strings.Join(strings.Fields(string(text)), " ")
	if status < 0 { // killed by a signal
		status = statusSSH
	}
	switch {
	case said == "":
		said = cmd.ProcessState.String()
	case status != statusSSH:
		fmt.Fprintln(l.log, "labexec:", said)
	}
	return status, said, nil
}

// mayComeBack tells whether to try again.
func (l *lab) mayComeBack(lost time.Time) error {
	running, err := l.running()
	switch {
	case err != nil:
		return err
	case !running:
		return &diedError{"its QEMU has ended"}
	case time.Since(lost) > l.patience:
		return &diedError{fmt.Sprintf("nothing has answered for %v", time.Since(lost).Round(time.Second))}
	}
	return nil
}

// ask runs a script and returns what it printed; any status but 0 is an error.
func (l *lab) ask(ctx context.Context, script string, args ...string) (string, error) {
	return l.askWith(ctx, nil, script, args...)
}

func (l *lab) askWith(ctx context.Context, input func() (io.ReadCloser, error), script string, args ...string) (string, error) {
	var out bytes.Buffer
	status, err := l.run(ctx, session{script: script, stdout: &out, input: input,
		args: func() []string { out.Reset(); return args }})
	if err == nil && status != 0 {
		err = fmt.Errorf("a script in the lab ended with %d", status)
	}
	return strings.TrimSpace(out.String()), err
}

// meet notes which boot of the lab this is.
func (l *lab) meet(ctx context.Context) (err error) {
	l.boot, err = l.ask(ctx, "cat /proc/sys/kernel/random/boot_id")
	if err == nil && l.boot == "" {
		err = errors.New("the lab does not tell its boot id")
	}
	return err
}
