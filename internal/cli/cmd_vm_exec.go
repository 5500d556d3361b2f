package cli

import (
	"context"
	"fmt"
	"path"
	"regexp"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"banger/client"
	"banger/internal/guest"
)

func (a *App) vmExecCommand() *cobra.Command {
	var sess sessionFlags
	cmd := &cobra.Command{
		Use:   "exec NAME [flags] [--] [COMMAND [ARG...]]",
		Short: "Run a command in a running VM",
		Long: `Runs COMMAND in a VM that runs, without a shell in between. Streams, signals and
exit code are the command's, as with vm run. Without COMMAND you get a login shell.`,
		Example: `  banger vm exec box -- uptime
  banger vm exec box -e LANG=C -w /srv -- ls -l
  banger vm exec box                     a shell`,
		Annotations:       map[string]string{passesExitCode: "yes"},
		Args:              args(1, -1, "the name of a VM"),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, words []string) error {
			// Parsing stopped at NAME; our flags may also stand between it and COMMAND.
			if err := cmd.Flags().Parse(words[1:]); err != nil {
				return usage(cmd, "%v", err)
			}
			if help, err := cmd.Flags().GetBool("help"); err == nil && help {
				return cmd.Help()
			}
			command, err := sess.command(cmd, cmd.Flags().Args(), a.Getenv)
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.exec(cmd.Context(), c, words[0], command)
		},
	}
	cmd.Flags().SetInterspersed(false)
	sess.add(cmd)
	return cmd
}

// exec runs command in the VM ref. It asks the daemon for the connection and
// for nothing else.
func (a *App) exec(ctx context.Context, c *client.Client, ref string, command command) error {
	conn, err := c.Dial(ctx, ref, guest.ControlPort)
	if err != nil {
		return fmt.Errorf("cannot run a command in %s: %w", ref, err)
	}
	defer conn.Close()
	code, err := a.runSession(ctx, conn, command)
	if err != nil {
		return fmt.Errorf("cannot run the command in %s: %w", ref, err)
	}
	if code != 0 {
		return exitError{code}
	}
	return nil
}

// A stricter rule than the guest's, which takes all but = and NUL: what is not
// such a name is a mistake.
var variableName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,255}$`) })

const maxEnv = 1000

// sessionFlags say how a command runs in the guest.
type sessionFlags struct {
	env        []string
	dir        string
	tty, noTTY bool
}

func (s *sessionFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVarP(&s.env, "env", "e", nil, "set a variable: K=V, or K to pass on ours (may be repeated)")
	f.StringVarP(&s.dir, "workdir", "w", "", "directory to run in (default: the image's)")
	f.BoolVarP(&s.tty, "tty", "t", false, "give the command a terminal (default: if stdin and stdout are one)")
	f.BoolVarP(&s.noTTY, "no-tty", "T", false, "give it none")
}

func (s *sessionFlags) command(cmd *cobra.Command, argv []string, getenv func(string) string) (command, error) {
	out := command{exec: guest.Exec{Argv: argv, Dir: s.dir}}
	switch {
	case s.tty && s.noTTY:
		return out, usage(cmd, "-t and -T exclude each other")
	case s.tty:
		out.tty = ttyForce
	case s.noTTY:
		out.tty = ttyNever
	}
	if s.dir != "" && !path.IsAbs(s.dir) {
		return out, usage(cmd, "directory %q is not absolute", s.dir)
	}
	if len(argv) > 0 && argv[0] == "" {
		return out, usage(cmd, "the command is empty")
	}
	for _, e := range s.env {
		k, v, given := strings.Cut(e, "=")
		if !given {
			v = getenv(k)
		}
		switch {
		case !variableName().MatchString(k) || strings.ContainsRune(v, 0):
			return out, usage(cmd, "-e %q is not K=V", e)
		case given || v != "": // one we do not have is not passed on
			out.exec.Env = append(out.exec.Env, k+"="+v)
		}
	}
	if len(s.env) > maxEnv {
		return out, usage(cmd, "%d variables are more than %d", len(s.env), maxEnv)
	}
	return out, nil
}
