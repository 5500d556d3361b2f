package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/client"
)

func (a *App) vmStatsCommand() *cobra.Command {
	var watch bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use: "stats [NAME...]", Short: "Show what VMs take of the host",
		Long: `Figures since the start of each VM, as the host counts them: CPU time, memory, bytes
read from and written to disks, bytes the guest received and sent. Without names: all
that run. With --watch they come again and again, with the CPU's part of that time.`,
		Example:           "  banger vm stats\n  banger vm stats box --watch\n  banger vm stats box --watch --json     one object per line",
		ValidArgsFunction: a.completeVMs,
		Annotations:       map[string]string{endsBySignal: "yes"},
		RunE: func(cmd *cobra.Command, refs []string) error {
			if interval < time.Second || interval > time.Hour {
				return usage(cmd, "--interval must be from 1s to 1h")
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			if refs = unique(refs); len(refs) == 0 {
				if refs, err = running(cmd.Context(), c); err != nil {
					return fmt.Errorf("cannot list VMs: %w", err)
				}
			}
			if watch {
				return a.watchStats(cmd.Context(), c, refs, interval)
			}
			return a.stats(cmd.Context(), c, refs)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until all have ended")
	cmd.Flags().DurationVarP(&interval, "interval", "i", time.Second, "with --watch: time between two figures, in whole seconds")
	complete(cmd, "interval", cobra.NoFileCompletions)
	a.jsonFlag(cmd)
	return cmd
}

// running names the VMs that have figures.
func running(ctx context.Context, c *client.Client) ([]string, error) {
	vms, err := c.VMs(ctx)
	names := []string{}
	for _, vm := range vms {
		if vm.State == api.StateRunning || vm.State == api.StatePaused {
			names = append(names, vm.Name)
		}
	}
	return names, err
}

func (a *App) stats(ctx context.Context, c *client.Client, refs []string) error {
	answers := inOrder(refs, func(ref string) answer {
		s, err := c.Stats(ctx, ref)
		return onlyGood(answer{Stats: &s, err: err})
	})
	return a.tellAnswers(ctx, "measure ", answers, func(good []answer) error {
		rows := [][]string{}
		for _, ans := range good {
			rows = append(rows, statsRow(*ans.Stats))
		}
		if len(good) < len(refs) && len(rows) == 0 {
			return nil
		}
		return a.table(statsHead, rows)
	})
}

var statsHead = []string{"NAME", "CPU TIME", "MEMORY", "LIMIT", "READ", "WRITTEN", "RECEIVED", "SENT", "TASKS"}

func statsRow(s api.Stats) []string {
	limit := "-"
	if s.MemoryLimit > 0 {
		limit = bytesText(s.MemoryLimit)
	}
	spent := (time.Duration(s.CPUMicros) * time.Microsecond).Round(10 * time.Millisecond)
	return []string{s.Name, spent.String(), bytesText(s.MemoryBytes), limit, bytesText(s.ReadBytes), bytesText(s.WriteBytes),
		bytesText(s.RxBytes), bytesText(s.TxBytes), strconv.Itoa(s.Tasks)}
}

// figures is one sample of one of the VMs that are watched, or its end.
type figures struct {
	place int
	stats api.Stats
	err   error
}

// watchStats shows samples until all VMs have ended.
func (a *App) watchStats(ctx context.Context, c *client.Client, refs []string, every time.Duration) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	samples := make(chan figures)
	var all sync.WaitGroup
	for i, ref := range refs {
		all.Go(func() {
			err := c.WatchStats(ctx, ref, every, func(s api.Stats) error {
				select {
				case samples <- figures{place: i, stats: s}:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			})
			select {
			case samples <- figures{place: i, err: err}:
			case <-ctx.Done():
			}
		})
	}
	go func() { all.Wait(); close(samples) }()
	show := &statsView{app: a, last: make([]api.Stats, len(refs)), rows: make([][]string, len(refs))}
	failed := error(nil)
	for f := range samples {
		if f.err != nil {
			show.clear()
			show.rows[f.place] = nil
			a.talk.fail(fmt.Errorf("cannot measure %s: %w", refs[f.place], f.err))
			failed = exitError{exitFailed}
			continue
		}
		if err := show.tell(f); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return failed
}

// statsView shows samples: on a terminal one table that changes, elsewhere a
// line for each.
type statsView struct {
	app   *App
	last  []api.Stats
	rows  [][]string
	lines int // of the table on the terminal
	begun bool
}

func (v *statsView) tell(f figures) error {
	a := v.app
	if a.json {
		raw, err := json.Marshal(f.stats)
		if err == nil {
			_, err = a.Out.Write(append(raw, '\n'))
		}
		return err
	}
	row := append([]string{f.stats.Name, share(v.last[f.place], f.stats)}, statsRow(f.stats)[1:]...)
	v.last[f.place] = f.stats
	v.rows[f.place] = row
	head := append([]string{"NAME", "CPU"}, statsHead[1:]...)
	if !isTerminal(a.Out) {
		rows := [][]string{row}
		if !v.begun {
			rows = [][]string{head, row}
		}
		v.begun = true
		_, err := a.Out.Write(columns(rows, statsWidth))
		return err
	}
	rows := [][]string{head}
	for _, r := range v.rows {
		if r != nil {
			rows = append(rows, r)
		}
	}
	v.clear()
	v.lines = len(rows)
	_, err := a.Out.Write(columns(rows, statsWidth))
	return err
}

// clear takes the table off the terminal.
func (v *statsView) clear() {
	if v.lines > 0 {
		_, _ = fmt.Fprintf(v.app.Out, "\x1b[%dA\x1b[J", v.lines) // the next write tells if nobody is there
		v.lines = 0
	}
}

// share is how much of one CPU was taken since the sample before.
func share(before, now api.Stats) string {
	passed := now.At.Sub(before.At)
	if before.At.IsZero() || passed <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", float64(now.CPUMicros-before.CPUMicros)/float64(passed.Microseconds())*100)
}

// statsWidth keeps columns in place from one line to the next.
const statsWidth = 10

func columns(rows [][]string, width int) []byte {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, width, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				_, _ = w.Write([]byte{'\t'})
			}
			_, _ = w.Write([]byte(oneLine(cell)))
		}
		_, _ = w.Write([]byte{'\n'})
	}
	_ = w.Flush() // a buffer takes everything
	return b.Bytes()
}
