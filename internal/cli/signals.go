package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// signalError is the cause of a context that a signal cancelled.
type signalError struct{ sig syscall.Signal }

func (e signalError) Error() string { return fmt.Sprintf("cancelled by signal %d", int(e.sig)) }

// signals decides what INT, TERM and HUP do. Normally the first cancels ctx,
// and everybody undoes what they began; one more cancels hard, which ends the
// undoing too. While a session is open, take diverts them to the guest.
type signals struct {
	ctx, hard  context.Context
	cancel     context.CancelCauseFunc
	cancelHard context.CancelCauseFunc
	ch         chan os.Signal
	done       chan struct{}
	mu         sync.Mutex
	divertedTo func(syscall.Signal)
}

// A broken pipe must reach us as an error of write: dying of the signal would
// leave a VM behind in `banger vm run --rm -- yes | head -1`.
var endSignals = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE}

func watchSignals() *signals {
	s := &signals{ch: make(chan os.Signal, 16), done: make(chan struct{})}
	s.hard, s.cancelHard = context.WithCancelCause(context.Background())
	s.ctx, s.cancel = context.WithCancelCause(s.hard)
	s.notify(endSignals...)
	go s.loop()
	return s
}

// notify asks for signals, except those our parent had us ignore (nohup).
func (s *signals) notify(sigs ...os.Signal) {
	for _, sig := range sigs {
		if !signal.Ignored(sig) {
			signal.Notify(s.ch, sig)
		}
	}
}

func (s *signals) loop() {
	for {
		select {
		case sig := <-s.ch:
			if n := sig.(syscall.Signal); n != syscall.SIGPIPE {
				s.deliver(n)
			}
		case <-s.done:
			return
		}
	}
}

func (s *signals) deliver(sig syscall.Signal) {
	s.mu.Lock()
	divert := s.divertedTo
	s.mu.Unlock()
	switch {
	case divert != nil:
		divert(sig)
	case s.ctx.Err() == nil:
		s.cancel(signalError{sig})
	default:
		s.cancelHard(signalError{sig})
	}
}

// divert sends signals to f until the returned function is called, and more
// of them than are watched for otherwise.
func (s *signals) divert(f func(syscall.Signal), more ...os.Signal) (restore func()) {
	s.mu.Lock()
	s.divertedTo = f
	s.mu.Unlock()
	s.notify(more...)
	return func() {
		s.mu.Lock()
		s.divertedTo = nil
		s.mu.Unlock()
		signal.Reset(more...)
	}
}

func (s *signals) stop() {
	signal.Stop(s.ch)
	close(s.done)
	s.cancel(nil)
	s.cancelHard(nil)
}
