package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dirWatch waits for entries of one directory to come or go.
type dirWatch struct{ f *os.File }

// watchDir watches from the moment it returns, so whoever looks at the
// directory afterwards misses nothing.
func watchDir(path string, events uint32) (*dirWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch %s: %w", path, err)
	}
	w := &dirWatch{os.NewFile(uintptr(fd), "inotify")}
	if _, err := unix.InotifyAddWatch(fd, path, events|unix.IN_ONLYDIR); err != nil {
		w.f.Close()
		return nil, fmt.Errorf("cannot watch %s: %w", path, err)
	}
	return w, nil
}

func (w *dirWatch) Close() error { return w.f.Close() }

// wait returns nil when the entry called name may have changed: events may be
// lost when there are too many, and then it returns too.
func (w *dirWatch) wait(ctx context.Context, name string) error {
	stop := context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) }) // wakes the reader
	defer stop()
	buf := make([]byte, 4096)
	for {
		n, err := w.f.Read(buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("cannot read events: %w", err)
		}
		if concerns(buf[:n], name) {
			return nil
		}
	}
}

// concerns reports whether one of the raw events is about name, or says that
// events were lost.
func concerns(b []byte, name string) bool {
	for len(b) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(b[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if mask&unix.IN_Q_OVERFLOW != 0 || end > len(b) {
			return true
		}
		if strings.TrimRight(string(b[unix.SizeofInotifyEvent:end]), "\x00") == name {
			return true
		}
		b = b[end:]
	}
	return false
}
