package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"banger/api"
)

const (
	// logReaders bounds the journalctls at one time, each of which is a process.
	logReaders = 32
	// logEnd is how long a journalctl that was told to end may take.
	logEnd = 2 * time.Second
	// logDrain is how long the journal gets to show the end of a VM that is deleted.
	logDrain = time.Second
	// logWords bounds what journalctl may say of its troubles.
	logWords = 4 << 10
)

// LogQuery says which part of a VM's console is wanted.
type LogQuery struct {
	Since  time.Time // zero = from the beginning
	Lines  int       // only the last so many; 0 = all
	Follow bool
	Times  bool // with the time before each line
}

// Logs writes the console of a VM and what Firecracker said to w, of all its
// runs that the journal keeps, until there is no more, ctx ends, or w fails.
// The text is the guest's: whoever shows it to a person strips it.
func (m *Manager) Logs(ctx context.Context, id string, q LogQuery, w io.Writer) error {
	select {
	case m.logs <- struct{}{}:
		defer func() { <-m.logs }()
	default:
		return api.Problemf(http.StatusServiceUnavailable, api.CodeUnavailable, "cannot read the console: %d are being read already", logReaders).
			WithHint("end some of the readers")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if q.Follow {
		go m.endWith(ctx, id, cancel)
	}
	cmd := exec.CommandContext(ctx, "journalctl", logArgs(id, q)...)
	out := &logWriter{w: w, failed: func() { cancel(nil) }}
	words := &boundedBuffer{most: logWords}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = out, words, logEnd
	err := cmd.Run()
	switch {
	case out.err != nil:
		return out.err
	case errors.Is(context.Cause(ctx), errDeleted):
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, exec.ErrNotFound):
		return api.Problemf(http.StatusConflict, api.CodePrerequisite, "cannot read the console: there is no journalctl on this host")
	case err != nil:
		return api.Internal("cannot read the console: journalctl: %v: %s", err, strings.TrimSpace(words.kept.String())).
			WithHint("bangerd needs the group systemd-journal: `sudo banger system install` gives it")
	}
	return nil
}

var errDeleted = errors.New("the VM was deleted")

// endWith ends the following of a console whose VM is deleted, a moment later: the
// journal may still have words to give.
func (m *Manager) endWith(ctx context.Context, id string, end context.CancelCauseFunc) {
	err := m.Events(ctx, EventQuery{Ref: id, Follow: true}, func(api.Event) error { return nil })
	p, refused := errors.AsType[*api.Problem](err)
	if err == nil || refused && p.Code == api.CodeNotFound {
		time.AfterFunc(logDrain, func() { end(errDeleted) })
	}
}

func logArgs(id string, q LogQuery) []string {
	format := "cat"
	if q.Times {
		format = "short-iso"
	}
	args := []string{"--namespace=banger", "--unit=" + UnitOf(id), "--output=" + format, "--no-pager", "--quiet", "--all"}
	if !q.Since.IsZero() {
		args = append(args, fmt.Sprintf("--since=@%d", q.Since.Unix()))
	}
	if q.Lines > 0 {
		args = append(args, "--lines="+strconv.Itoa(q.Lines))
	} else if q.Follow {
		args = append(args, "--no-tail")
	}
	if q.Follow {
		args = append(args, "--follow")
	}
	return args
}

// logWriter ends the reading when nobody takes what is read.
type logWriter struct {
	w      io.Writer
	failed func()
	err    error
}

func (l *logWriter) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	if err != nil {
		l.err = err
		l.failed()
	}
	return n, err
}

// boundedBuffer keeps the beginning of what is written to it.
type boundedBuffer struct {
	kept bytes.Buffer // not embedded: its ReadFrom would take all
	most int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.kept.Write(p[:min(len(p), b.most-b.kept.Len())])
	return len(p), nil
}
