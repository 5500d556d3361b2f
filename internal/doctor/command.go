package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// command runs a program of the host with its arguments and returns what it
// printed, also with an error.
type command func(ctx context.Context, argv ...string) (out string, err error)

// What a program may take. A directory of accounts may hang, or be large.
const (
	commandTime   = 8 * time.Second
	commandOutput = 16 << 20
)

// exitCode is of a program that ended by itself.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

var (
	errNoProgram = errors.New("there is no such program")
	errTooMuch   = errors.New("it prints too much")
)

func (h Host) run(ctx context.Context, argv ...string) (string, error) {
	if h.Run == nil {
		return "", errNoProgram
	}
	return h.Run(ctx, argv...)
}

func runCommand(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.WaitDelay = 100 * time.Millisecond
	out := &shortText{room: commandOutput}
	cmd.Stdout = out
	err := cmd.Run()
	exit, ended := errors.AsType[*exec.ExitError](err)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		err = errNoProgram
	case ctx.Err() != nil:
		err = fmt.Errorf("it does not answer within %s", commandTime)
	case out.full:
		err = errTooMuch
	case ended && exit.Exited():
		err = exitCode(exit.ExitCode())
	}
	if err != nil {
		err = fmt.Errorf("cannot ask %s: %w", strings.Join(argv[:min(2, len(argv))], " "), err)
	}
	return out.text.String(), err
}

// shortText keeps the first of what is written.
type shortText struct {
	text bytes.Buffer // not embedded: it would read by itself, and all
	room int
	full bool
}

func (t *shortText) Write(p []byte) (int, error) {
	if t.full = t.full || t.text.Len()+len(p) > t.room; t.full {
		return 0, errTooMuch
	}
	return t.text.Write(p)
}
