package firecracker

import (
	"errors"
	"sync"
	"time"
)

// Calls are the requests of a process that have no answer yet. Its end would close
// their connections, and an answer to a closed connection ends a Firecracker: 1.12
// gets SIGPIPE in its API thread, whose own filter of system calls has no
// rt_sigreturn. The zero value is ready for use.
type Calls struct {
	mu     sync.Mutex
	open   int
	newest time.Time
	closed bool
	none   chan struct{} // once closed; closed itself when the last has its answer
}

var errClosed = errors.New("this process asks no Firecracker any more")

func (c *Calls) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errClosed
	}
	c.open++
	c.newest = time.Now()
	return nil
}

func (c *Calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.open == 0 && c.closed {
		close(c.none)
	}
}

// Close lets no call begin any more, waits for answers to those that began within
// patience, and returns how many are still due: of Firecrackers that hang or have
// been taken over, which must not hold up everybody else. Call it once.
func (c *Calls) Close(patience time.Duration) (due int) {
	c.mu.Lock()
	c.closed, c.none = true, make(chan struct{})
	open, rest := c.open, time.Until(c.newest.Add(patience))
	c.mu.Unlock()
	if open == 0 {
		return 0
	}
	select {
	case <-c.none:
		return 0
	case <-time.After(rest):
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}
