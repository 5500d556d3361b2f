//go:build !faults

// Package fault is where tests of crashes reach into a program: named points
// at which they hold it, kill it, or have it fail. Only programs built with
// the tag "faults" have them; in all others a point is nothing.
package fault

import "context"

// Point returns what a test wants to happen here.
func Point(context.Context, string) error { return nil }
