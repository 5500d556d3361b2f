//go:build e2e && faults

package faults

import (
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// attempt is a test that tells how it went and fails nothing: a cell in which a
// guest stood still at its boot gets another one (docs/decisions.md, "One
// emulated CPU").
type attempt struct {
	testing.TB

	mu       sync.Mutex
	failed   bool
	said     strings.Builder // by errors
	cleanups []func()
}

func attemptAt(t *testing.T, f func(testing.TB)) *attempt {
	a := &attempt{TB: t}
	done := make(chan struct{})
	go func() { // which FailNow ends
		defer close(done)
		defer a.clean()
		f(a)
	}()
	<-done
	return a
}

// clean runs the clean-ups, the last first, also if one of them fails.
func (a *attempt) clean() {
	if len(a.cleanups) == 0 {
		return
	}
	defer a.clean()
	last := a.cleanups[len(a.cleanups)-1]
	a.cleanups = a.cleanups[:len(a.cleanups)-1]
	last()
}

// stillGuest is a start that ended because the guest's agent did not answer. After
// a fault at the end of that phase it is the fault that ended, and it says so in
// other words.
var stillGuest = regexp.MustCompile(`wait_vsock_agent: it took longer than start_timeout `)

// stoodStill tells whether it failed because a guest stood still at its boot.
func (a *attempt) stoodStill() bool { return stillGuest.MatchString(a.said.String()) }

func (a *attempt) Cleanup(f func()) { a.cleanups = append(a.cleanups, f) }

func (a *attempt) Failed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed
}

func (a *attempt) Fail() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = true
}

func (a *attempt) FailNow() {
	a.Fail()
	runtime.Goexit()
}

func (a *attempt) fail(text string) {
	a.Helper()
	a.Log(text)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = true
	fmt.Fprintln(&a.said, text)
}

func (a *attempt) Error(args ...any) { a.Helper(); a.fail(fmt.Sprintln(args...)) }

func (a *attempt) Errorf(format string, args ...any) {
	a.Helper()
	a.fail(fmt.Sprintf(format, args...))
}

func (a *attempt) Fatal(args ...any) { a.Helper(); a.Error(args...); runtime.Goexit() }

func (a *attempt) Fatalf(format string, args ...any) {
	a.Helper()
	a.Errorf(format, args...)
	runtime.Goexit()
}

func TestAttempt(t *testing.T) {
	var order []string
	a := attemptAt(t, func(t testing.TB) {
		t.Cleanup(func() { order = append(order, "first") })
		t.Cleanup(func() { t.Fatal("a clean-up that fails") })
		t.Cleanup(func() { order = append(order, "last") })
		t.Fatalf("cannot start: %s: it took longer than start_timeout (2m0s)", "wait_vsock_agent")
		order = append(order, "never")
	})
	if !a.failed || !a.stoodStill() || strings.Join(order, " ") != "last first" {
		t.Errorf("failed %v, stood still %v, %v", a.failed, a.stoodStill(), order)
	}
	if a := attemptAt(t, func(t testing.TB) { t.Error("left behind: tap0") }); !a.failed || a.stoodStill() {
		t.Errorf("failed %v, stood still %v", a.failed, a.stoodStill())
	}
	if a := attemptAt(t, func(testing.TB) {}); a.failed {
		t.Error("it failed")
	}
}
