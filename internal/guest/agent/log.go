package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// kmsgHandler writes records to the kernel's log, where they stand between
// the kernel's own and need no file of the image. Errors get a level that is
// shown on the console even with loglevel=3, so that bangerd can quote them.
type kmsgHandler struct {
	mu    *sync.Mutex
	w     io.Writer
	attrs string
}

// newLogger logs to the kernel, or to stderr where that cannot be opened.
func newLogger() *slog.Logger {
	h := &kmsgHandler{mu: new(sync.Mutex), w: os.Stderr}
	if fd, err := unix.Open("/dev/kmsg", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		h.w = os.NewFile(uintptr(fd), "/dev/kmsg")
	}
	return slog.New(h)
}

func (h *kmsgHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h *kmsgHandler) Handle(_ context.Context, r slog.Record) error {
	priority := 6
	switch {
	case r.Level >= slog.LevelError:
		priority = 2
	case r.Level >= slog.LevelWarn:
		priority = 4
	}
	line := r.Message + h.attrs
	r.Attrs(func(a slog.Attr) bool {
		line += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		return true
	})
	line = strings.ReplaceAll(line, "\n", " ") // one write, one record
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := fmt.Fprintf(h.w, "<%d>banger-agent: %s\n", priority, line)
	return err
}

func (h *kmsgHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	for _, a := range attrs {
		n.attrs += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return &n
}

func (h *kmsgHandler) WithGroup(string) slog.Handler { return h }

// guard keeps a panic in one connection from ending all others.
func guard(log *slog.Logger, f func()) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic in a connection", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	f()
}
