package vm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

type stages []string

func (s *stages) Stage(name, detail string) { *s = append(*s, name+"/"+detail) }

// TestPipelineUndoesExactlyWhatRan draws random lists of steps that fail in
// run, in undo or in both, and checks order, completeness and the error text.
func TestPipelineUndoesExactlyWhatRan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "steps")
		failAt := rapid.IntRange(-1, n-1).Draw(t, "failAt")
		cancelAt := rapid.IntRange(-1, n-1).Draw(t, "cancelAt")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var trace []string
		var steps []step[struct{}]
		undoFails := map[int]bool{}
		hasUndo := map[int]bool{}
		for i := range n {
			undoFails[i] = rapid.Bool().Draw(t, "undoFails")
			hasUndo[i] = rapid.Bool().Draw(t, "hasUndo")
			s := step[struct{}]{name: fmt.Sprintf("s%d", i), run: func(struct{}, context.Context) error {
				trace = append(trace, fmt.Sprintf("run%d", i))
				if i == cancelAt {
					cancel()
				}
				if i == failAt {
					return fmt.Errorf("boom%d", i)
				}
				return nil
			}}
			if hasUndo[i] {
				s.undo = func(_ struct{}, ctx context.Context) error {
					if ctx.Err() != nil {
						t.Error("an undo got a cancelled context")
					}
					trace = append(trace, fmt.Sprintf("undo%d", i))
					if undoFails[i] {
						return fmt.Errorf("worse%d", i)
					}
					return nil
				}
			}
			steps = append(steps, s)
		}
		// The step that fails: failAt itself, or the one after cancelAt.
		end := failAt
		cancelled := cancelAt >= 0 && cancelAt+1 < n && (failAt < 0 || cancelAt < failAt)
		if cancelled {
			end = cancelAt + 1
		}
		_, err := runSteps(ctx, slog.New(slog.DiscardHandler), &stages{}, steps, struct{}{})

		var want []string
		last := n - 1
		if end >= 0 {
			last = end
		}
		for i := range last + 1 {
			if i == end && cancelled {
				break // before it ran
			}
			want = append(want, fmt.Sprintf("run%d", i))
		}
		if end >= 0 {
			for i := end; i >= 0; i-- {
				if hasUndo[i] {
					want = append(want, fmt.Sprintf("undo%d", i))
				}
			}
		}
		if !slices.Equal(trace, want) {
			t.Fatalf("trace %v, want %v", trace, want)
		}
		if (err != nil) != (end >= 0) {
			t.Fatalf("error %v, failing step %d", err, end)
		}
		if end < 0 {
			return
		}
		cause := fmt.Sprintf("s%d: boom%d", end, end)
		if cancelled {
			cause = fmt.Sprintf("s%d: context canceled", end)
		}
		if !strings.HasPrefix(err.Error(), cause) {
			t.Fatalf("error %q does not begin with %q", err, cause)
		}
		for i := 0; i <= end; i++ {
			text := fmt.Sprintf("rollback s%d: worse%d", i, i)
			if strings.Contains(err.Error(), text) != (hasUndo[i] && undoFails[i]) {
				t.Fatalf("error %q, undo %d failed: %v", err, i, undoFails[i])
			}
		}
	})
}

func TestPipelineReportsStagesAndTimes(t *testing.T) {
	var seen stages
	nop := func(int, context.Context) error { return nil }
	times, err := runSteps(t.Context(), slog.New(slog.DiscardHandler), &seen, []step[int]{
		{name: "a", stage: "one", detail: "first", run: nop},
		{name: "b", run: nop},
		{name: "c", stage: "two", detail: "second", run: func(int, context.Context) error { return errors.New("no") }},
		{name: "d", stage: "three", run: nop},
	}, 0)
	if err == nil || !slices.Equal(seen, stages{"one/first", "two/second"}) {
		t.Errorf("stages %v, error %v", seen, err)
	}
	if len(times) != 3 || times[2].Phase != "c" {
		t.Errorf("times %v", times)
	}
}
