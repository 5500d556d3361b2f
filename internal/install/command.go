package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// runner runs a program by argv and returns its standard output, also when it
// fails; then the error is a *commandError.
type runner func(ctx context.Context, argv ...string) (stdout string, err error)

// commandError is a program that ended with another status than 0.
type commandError struct {
	argv   []string
	code   int
	stderr string
}

func (e *commandError) Error() string {
	text := fmt.Sprintf("`%s` ended with status %d", strings.Join(e.argv, " "), e.code)
	if e.stderr != "" {
		text += ": " + e.stderr
	}
	return text
}

func runCommand(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_PAGER=")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = &commandError{argv: argv, code: cmd.ProcessState.ExitCode(), stderr: strings.TrimSpace(stderr.String())}
	}
	return stdout.String(), err
}
