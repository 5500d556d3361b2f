package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"banger/client"
)

func (a *App) vmLogsCommand() *cobra.Command {
	var q client.LogQuery
	var since string
	var raw bool
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Show the console of a VM",
		Long: `Shows what the guest wrote to its console, and Firecracker's own messages, as the
host's journal keeps them: of all starts of the VM. Escape sequences and control
characters are left out, unless --raw is given.`,
		Example: `  banger vm logs box -n 50
  banger vm logs box -f
  banger vm logs box --since 10m -t`,
		Args:              args(1, 1, "the name of a VM"),
		ValidArgsFunction: a.completeVMs,
		Annotations:       map[string]string{endsBySignal: "yes"},
		RunE: func(cmd *cobra.Command, refs []string) error {
			if raw && a.json {
				return usage(cmd, "--raw and --json exclude each other")
			}
			if cmd.Flags().Changed("lines") && q.Lines < 1 {
				return usage(cmd, "--lines is %d, and must be at least 1", q.Lines)
			}
			if since != "" {
				t, err := parseSince(since, time.Now())
				if err != nil {
					return usage(cmd, "--since %s", err)
				}
				q.Since = t
			}
			return a.logs(cmd.Context(), refs[0], q, raw)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&q.Follow, "follow", "f", false, "wait for more")
	f.StringVar(&since, "since", "", "leave out what is older: 10m, or a time like 2006-01-02T15:04:05Z")
	f.IntVarP(&q.Lines, "lines", "n", 0, "only the last so many")
	f.BoolVarP(&q.Times, "timestamps", "t", false, "begin each line with its time")
	f.BoolVar(&raw, "raw", false, "as the guest wrote it; not for a terminal you care for")
	for _, free := range []string{"since", "lines"} {
		complete(cmd, free, cobra.NoFileCompletions)
	}
	a.jsonFlag(cmd)
	return cmd
}

// parseSince reads a moment, or how long it is ago.
func parseSince(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time like 2006-01-02T15:04:05Z and no duration like 10m", s)
}

func (a *App) logs(ctx context.Context, ref string, q client.LogQuery, raw bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	out := a.Out
	switch {
	case a.json:
		lines := &jsonLines{w: a.Out}
		defer lines.flush()
		out = lines
	case !raw:
		out = &plainWriter{w: a.Out}
	}
	err = c.Logs(ctx, ref, q, out)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("cannot show the console of %s: %w", ref, err)
	}
	return nil
}

// jsonLines writes an object for each line.
type jsonLines struct {
	w    io.Writer
	rest []byte
}

// longLine ends a line that has no end.
const longLine = 64 << 10

func (j *jsonLines) Write(p []byte) (int, error) {
	j.rest = append(j.rest, p...)
	for {
		line, rest, found := bytes.Cut(j.rest, []byte("\n"))
		if !found && len(j.rest) < longLine {
			return len(p), nil
		}
		j.rest = rest
		if err := j.line(line); err != nil {
			return 0, err
		}
	}
}

func (j *jsonLines) line(text []byte) error {
	raw, err := json.Marshal(map[string]string{"text": string(text)})
	if err == nil {
		_, err = j.w.Write(append(raw, '\n'))
	}
	return err
}

func (j *jsonLines) flush() {
	if len(j.rest) > 0 {
		_ = j.line(j.rest) // whoever read us has left
	}
}
