// Package cli is the banger command. Each noun has a file cmd_<noun>.go;
// everything said to the person at the terminal goes through talk.go and
// progress.go. stdout carries the answer and nothing else.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"banger/client"
	"banger/internal/version"
)

// cleanupTime bounds what is still done after the person has cancelled.
const cleanupTime = 2 * time.Minute

// App is one run of the command with its surroundings.
type App struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string

	talk    *talk
	signals *signals
	host    string
	verbose bool
	json    bool
}

// Main runs the command on the process's own streams and returns its exit code.
func Main(args []string) int {
	a := &App{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}
	return a.Run(args)
}

// Run executes args and returns the exit code.
func (a *App) Run(args []string) int {
	a.talk = newTalk(a.Err, a.Getenv)
	a.signals = watchSignals()
	defer a.signals.stop()
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	cmd, err := root.ExecuteContextC(a.signals.ctx)
	return a.exitCode(cmd, err)
}

// Commands is the tree of all commands, for manual pages. It is not for running.
func Commands() *cobra.Command { return (&App{Getenv: os.Getenv}).root() }

func (a *App) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "banger",
		Short: "Virtual machines as fast and as plain as containers",
		Long: `banger gives you a real virtual machine for a command, a build or an afternoon.

The common case: run a command in a fresh VM and have it removed afterwards.
  banger vm run --rm -- uname -a`,
		Example: `  banger vm run --rm -- make test     a fresh VM for one command
  banger vm run --name box            a VM to stay in
  banger vm exec box -- uptime        another command in it
  banger vm list                      what there is
  banger doctor                       is this host fit`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version.Version,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("banger {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%v", err) })
	flags := root.PersistentFlags()
	flags.StringVarP(&a.host, "host", "H", "", "where bangerd is: local, machine[:NAME], unix://PATH, ssh://[USER@]HOST (default $BANGER_HOST)")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "say on stderr what happens")
	root.AddCommand(
		a.vmCommand(), a.psCommand(), a.imageCommand(), a.kernelCommand(), a.operationCommand(),
		a.machineCommand(), a.systemCommand(),
		a.doctorCommand(), a.versionCommand(), a.dialStdioCommand(),
	)
	return root
}

// group is a command that only holds others.
func group(use, short, long string, children ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Long: long, Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	g.AddCommand(children...)
	return g
}

// noSuchCommand refuses words where a command was expected, and guesses which.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.SuggestionsMinimumDistance == 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return &usageError{text, "did you mean " + cmd.CommandPath() + " " + strings.Join(near, " or ") + "?"}
	}
	return &usageError{text, "see " + cmd.CommandPath() + " --help"}
}

// jsonFlag gives a command --json.
func (a *App) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.json, "json", false, "answer in JSON")
}

// cleanup returns a context for undoing: it is not the cancelled one, and it
// ends when the person insists by a second signal.
func (a *App) cleanup() (context.Context, context.CancelFunc) {
	return context.WithTimeout(a.signals.hard, cleanupTime)
}

// connect returns a client of the daemon this run is about.
func (a *App) connect() (*client.Client, error) {
	return resolveHost(a.host, a.Getenv, hostWorld)
}

// args checks the number of arguments; what names them in the message.
func args(lowest, highest int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < lowest:
			return usage(cmd, "%s needs %s", cmd.CommandPath(), what)
		case highest >= 0 && len(args) > highest:
			return usage(cmd, "%s takes %s and no more (%q)", cmd.CommandPath(), what, args[highest])
		}
		return nil
	}
}

// Exit codes of banger itself. run and exec use exitOwn for all their own
// failures, since every other code may be the command's.
const (
	exitFailed = 1
	exitUsage  = 2
	exitOwn    = 125
)

// exitError ends banger with a code; what there was to say has been said.
type exitError struct{ code int }

func (e exitError) Error() string { return "exit" }

// exitCode says what is left to say of err and maps it to the exit code.
func (a *App) exitCode(cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[exitError](err); ok {
		return e.code
	}
	s, cancelled := errors.AsType[signalError](err)
	if !cancelled && errors.Is(err, context.Canceled) {
		s, cancelled = errors.AsType[signalError](context.Cause(a.signals.ctx))
	}
	if cancelled {
		if cmd == nil || cmd.Annotations[endsBySignal] == "" {
			a.talk.note("cancelled")
		}
		return 128 + int(s.sig)
	}
	if errors.Is(err, syscall.EPIPE) { // whoever read us has seen enough
		return 128 + int(syscall.SIGPIPE)
	}
	a.talk.fail(err)
	_, wrongUse := errors.AsType[*usageError](err)
	switch {
	case cmd != nil && cmd.Annotations[passesExitCode] != "":
		return exitOwn
	case wrongUse:
		return exitUsage
	}
	return exitFailed
}

// passesExitCode marks the commands whose exit code is a guest command's.
const passesExitCode = "passes-exit-code"

// endsBySignal marks the commands that go on until somebody ends them.
const endsBySignal = "ends-by-signal"
