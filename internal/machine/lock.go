package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/api"
)

// lock takes the machine's lock for a command that changes it, or says that
// another command has it. The kernel gives it up when the process ends.
func (m *Machine) lock() (unlock func(), err error) {
	f, err := openLock(filepath.Join(filepath.Dir(m.Dir), "."+m.Name+".lock"))
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		_ = f.Close()
		return nil, api.Conflict("machine %q is being changed by another command", m.Name).
			WithHint("wait for that command to end, then try again")
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("cannot lock machine %q: %w", m.Name, err)
	}
	return func() { _ = f.Close() }, nil
}

// waitLock takes the lock at path, however long its holder keeps it. waiting
// is called first if there is somebody to wait for.
func waitLock(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	f, err := openLock(path)
	if err != nil {
		return nil, err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return func() { _ = f.Close() }, nil
	}
	waiting()
	// flock cannot be interrupted: a cancelled wait leaves its goroutine behind,
	// which gives the lock back should it ever get it.
	taken := make(chan error)
	go func() {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		select {
		case taken <- err:
		case <-ctx.Done():
			_ = f.Close()
		}
	}()
	select {
	case err := <-taken:
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("cannot lock %s: %w", path, err)
		}
		return func() { _ = f.Close() }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func openLock(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make a place for machines: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open lock: %w", err)
	}
	return f, nil
}
