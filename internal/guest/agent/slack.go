package agent

import (
	"fmt"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Timer slack is how late the kernel may let a thread's timers expire, so that
// several expire at once.
//
// Go's runtime has a thread that, while anything runs, sleeps 20 µs at a time.
// Each of these sleeps sets the virtual CPU's timer, which leaves the guest, and
// by then is over: on the one CPU of a small VM that thread would take more
// time than the command that was asked for. With slack it waits for the next
// interrupt, whatever that is for. No time that the agent keeps is shorter.
const (
	agentSlack  = 5_000_000 // nanoseconds
	normalSlack = 50_000    // what pid 1, and so everything else, has
)

// forkWithSlack starts a process that has, and passes on, the given slack. A
// child's own is that of the thread that forks.
func forkWithSlack(slack uintptr, path string, argv []string, attr *syscall.ProcAttr) (pid int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, slack, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("cannot set timer slack: %w", err)
	}
	pid, err = syscall.ForkExec(path, argv, attr)
	// 0 is back to what the thread was born with. It cannot fail where the other did not.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
	return pid, err
}
