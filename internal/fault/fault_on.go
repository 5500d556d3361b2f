//go:build faults

// Package fault is where tests of crashes reach into a program: named points
// at which they hold it, kill it, or have it fail. Only programs built with
// the tag "faults" have them; in all others a point is nothing.
package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dir holds a file for each point that something shall happen at, named after
// it; the file's text says what. It is made by the test, and a point that was
// reached moves its file to NAME.reached, so that it happens once. It lies where
// both services may write.
var Dir = "/var/lib/banger/faults"

// What can happen.
const (
	Hold  = "hold"  // until NAME.reached is removed or the context ends
	Stall = "stall" // until the context ends, by whatever bounds the step, and fail
	Late  = "late"  // fail at once as a step that took too long
	Error = "error" // fail
	Full  = "full"  // fail as on a full disk
)

// Point returns what a test wants to happen here.
func Point(ctx context.Context, name string) error {
	file := filepath.Join(Dir, name)
	text, err := os.ReadFile(file)
	if err != nil {
		return nil //nolint:nilerr // nobody wants anything
	}
	reached := file + ".reached"
	if err := os.Rename(file, reached); err != nil {
		return nil //nolint:nilerr // another came first
	}
	switch what := strings.TrimSpace(string(text)); what {
	case Error:
		return errors.New("a fault was injected at " + name)
	case Full:
		return fmt.Errorf("a fault was injected at %s: %w", name, unix.ENOSPC)
	case Late:
		return fmt.Errorf("a fault was injected at %s: %w", name, context.DeadlineExceeded)
	case Stall:
		if err := hold(ctx, reached); err != nil {
			return err
		}
		return errors.New("nothing ended the step that stood still at " + name)
	case Hold:
		return hold(ctx, reached)
	default:
		return fmt.Errorf("%s wants %q, which is no fault", file, what)
	}
}

// hold polls: it is only there for tests, and they look at it from outside.
func hold(ctx context.Context, file string) error {
	for {
		if _, err := os.Lstat(file); err != nil {
			return nil //nolint:nilerr // released
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
