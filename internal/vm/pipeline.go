package vm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"banger/api"
	"banger/internal/fault"
)

// Reporter is told of the stages a person sees. It must not block.
type Reporter interface{ Stage(name, detail string) }

// step is one phase of a pipeline over some state T. Names, stages and details
// are a stable interface: they appear in logs, progress and people's scripts.
type step[T any] struct {
	name          string
	stage, detail string // empty: not shown as progress
	// attrs are logged once run has succeeded.
	attrs func(T) []any
	// The state comes first, so that a method expression is a phase.
	run func(T, context.Context) error
	// undo must cope with a run that failed half way; nil if there is nothing
	// to undo.
	undo func(T, context.Context) error
}

// undoTime bounds each undo; a rollback may not hang for ever.
const undoTime = 30 * time.Second

// runSteps runs steps in order. On the first error it undoes the failing step
// and every earlier one in reverse, each with a context the caller cannot
// cancel and never stopping at an undo error, and joins everything that went
// wrong. The times of the steps that ran are returned in any case.
func runSteps[T any](ctx context.Context, log *slog.Logger, rep Reporter, steps []step[T], t T) ([]api.PhaseTime, error) {
	var times []api.PhaseTime
	for i, s := range steps {
		err := ctx.Err()
		if err == nil {
			if s.stage != "" {
				rep.Stage(s.stage, s.detail)
			}
			begun := time.Now()
			if err = s.run(t, ctx); err == nil {
				err = fault.Point(ctx, "start."+s.name)
			}
			spent := time.Since(begun)
			times = append(times, api.PhaseTime{Phase: s.name, Milliseconds: milliseconds(spent)})
			if err == nil {
				attrs := []any{"duration", spent}
				if s.attrs != nil {
					attrs = append(attrs, s.attrs(t)...)
				}
				log.InfoContext(ctx, s.name, attrs...)
				continue
			}
		}
		log.ErrorContext(ctx, s.name, "error", err)
		err = fmt.Errorf("%s: %w", s.name, err)
		return times, errors.Join(append([]error{err}, undoSteps(ctx, log, steps[:i+1], t)...)...)
	}
	return times, nil
}

func undoSteps[T any](ctx context.Context, log *slog.Logger, steps []step[T], t T) []error {
	var errs []error
	for _, s := range slices.Backward(steps) {
		if s.undo == nil {
			continue
		}
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		err := s.undo(t, undoCtx)
		if err == nil {
			err = fault.Point(undoCtx, "rollback."+s.name)
		}
		cancel()
		if err != nil {
			log.ErrorContext(ctx, "rollback_"+s.name, "error", err)
			errs = append(errs, fmt.Errorf("rollback %s: %w", s.name, err))
			continue
		}
		log.InfoContext(ctx, "rollback_"+s.name)
	}
	return errs
}
