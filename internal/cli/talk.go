package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"banger/api"
)

// talk is banger's voice: stderr, one writer at a time, colour only on a
// terminal that wants it and never as the only carrier of a meaning.
type talk struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	colour   bool
	live     bool // an unfinished line stands on the terminal
}

func newTalk(w io.Writer, getenv func(string) string) *talk {
	t := &talk{w: w, terminal: isTerminal(w)}
	t.colour = t.terminal && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
	return t
}

// isTerminal reports whether a stream is one; wrapped streams are not.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

const (
	bold = "1"
	dim  = "2"
	red  = "31"
)

func (t *talk) paint(code, s string) string {
	if !t.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// line prints one whole line, below or instead of an unfinished one.
func (t *talk) line(s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live {
		_, _ = io.WriteString(t.w, "\r\x1b[K")
		t.live = false
	}
	_, _ = io.WriteString(t.w, s+"\n") // nobody is left to hear of a failure here
}

// status shows s in place of the line before; "" clears it. Terminals only.
func (t *talk) status(s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.terminal || (s == "" && !t.live) {
		return
	}
	_, _ = io.WriteString(t.w, "\r\x1b[K"+s)
	t.live = s != ""
}

// answered forgets a question: the person's Return has ended its line.
func (t *talk) answered() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live = false
}

func (t *talk) note(format string, args ...any) {
	t.line("banger: " + plain(fmt.Sprintf(format, args...)))
}

func (t *talk) hint(hint string) {
	t.line(t.paint(dim, "hint: "+plain(hint)))
}

// fail says what went wrong and what to do next.
func (t *talk) fail(err error) {
	t.line(t.paint(red, "banger:") + " " + plain(sentence(err)))
	if hint := hintOf(err); hint != "" {
		t.hint(hint)
	}
}

// sentence is err's text without the words in front of a problem that is a
// whole sentence already: bangerd says itself what could not be done.
func sentence(err error) string {
	if p, ok := errors.AsType[*api.Problem](err); ok && strings.HasPrefix(p.Detail, "cannot ") {
		return p.Detail
	}
	return err.Error()
}

func hintOf(err error) string {
	if u, ok := errors.AsType[*usageError](err); ok {
		return u.hint
	}
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Hint
	}
	return ""
}

// plain makes text that may come from a guest or another host safe to print:
// no control character reaches the terminal, and none that turns a line round.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, s)
}

// ask puts a question to the person; anything but a yes is no.
func (a *App) ask(ctx context.Context, question string) (bool, error) {
	a.talk.status(plain(question) + " [y/N] ")
	said := make(chan string, 1)
	go func() { // a read of a terminal cannot be interrupted; the process ends soon
		s, err := bufio.NewReader(a.In).ReadString('\n')
		if err != nil {
			s = ""
		}
		said <- s
	}()
	select {
	case s := <-said:
		a.talk.answered()
		s = strings.ToLower(strings.TrimSpace(s))
		return s == "y" || s == "yes", nil
	case <-ctx.Done():
		a.talk.line("")
		return false, context.Cause(ctx)
	}
}

// usageError is a command line that cannot be meant.
type usageError struct{ text, hint string }

func (e *usageError) Error() string { return e.text }

func usage(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...), "see " + cmd.CommandPath() + " --help"}
}

// printJSON writes v as the answer.
func (a *App) printJSON(v any) error {
	e := json.NewEncoder(a.Out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table prints rows under a head, in columns.
func (a *App) table(head []string, rows [][]string) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{head}, rows...) {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = strings.Map(func(r rune) rune {
				if r == '\n' || r == '\t' {
					return ' '
				}
				return r
			}, plain(cell))
		}
		if _, err := fmt.Fprintln(w, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

func bytesText(n int64) string { return units.BytesSize(float64(n)) }

// age says how long ago t was.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return units.HumanDuration(max(0, time.Since(t))) + " ago"
}
