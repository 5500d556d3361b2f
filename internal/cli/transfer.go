package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/client"
)

// importing is an import of an image or a kernel.
type importing struct {
	spec  api.ImportSpec
	begin func(context.Context, api.ImportSpec) (api.Operation, error)
	// data writes the input to w; not used if there is a file.
	data func(ctx context.Context, w io.Writer) error
	file *os.File // regular
}

// runImport begins the import, streams its data and waits for its end. When
// the data cannot be read to its end the import is cancelled: half an image
// must not look like a small one.
func (a *App) runImport(ctx context.Context, c *client.Client, im importing) (api.Operation, error) {
	accept, done := context.WithTimeout(a.signals.hard, acceptTime)
	op, err := im.begin(accept, im.spec)
	done()
	if err != nil {
		return op, err
	}
	sending, stop := context.WithCancel(ctx)
	defer stop()
	sent := make(chan error, 1)
	go func() { sent <- a.send(sending, c, op.ID, im) }()
	last, err := a.follow(ctx, c, op)
	stop()
	if local, ok := errors.AsType[*inputError](<-sent); ok && ctx.Err() == nil {
		return last, local
	}
	return last, err
}

// tellImport runs an import as a command: its answer is the name.
func (a *App) tellImport(ctx context.Context, c *client.Client, kind string, im importing) error {
	op, err := a.runImport(ctx, c, im)
	if err != nil {
		return fmt.Errorf("cannot import %s %s: %w", kind, im.spec.Name, err)
	}
	if a.json {
		return a.printJSON(op)
	}
	_, err = fmt.Fprintln(a.Out, im.spec.Name)
	return err
}

// inputError is a failure of our side of an import.
type inputError struct{ error }

func (e *inputError) Unwrap() error { return e.error }

// send streams the data. If it cannot be had, it cancels the operation, which
// ends the watching too.
func (a *App) send(ctx context.Context, c *client.Client, id string, im importing) error {
	if im.file != nil {
		err := c.SendFile(ctx, id, im.file)
		if err != nil && ctx.Err() == nil {
			a.giveUp(c, id)
		}
		return err
	}
	r, w := io.Pipe()
	produced := make(chan error, 1)
	go func() {
		err := im.data(ctx, w)
		w.CloseWithError(err)
		produced <- err
	}()
	err := c.SendInput(ctx, id, r)
	r.CloseWithError(errStopped) // a daemon that wants no more ends the producer
	if local := <-produced; local != nil && !errors.Is(local, errStopped) && ctx.Err() == nil {
		err = &inputError{local}
	}
	if err != nil && ctx.Err() == nil {
		a.giveUp(c, id)
	}
	return err
}

// giveUp cancels an import that gets no data. It may have failed already; Watch
// shows how.
func (a *App) giveUp(c *client.Client, id string) {
	undo, done := a.cleanup()
	defer done()
	_ = c.CancelOperation(undo, id)
}

var errStopped = errors.New("no more data wanted")

// deleteEach removes images or kernels one after the other, going on after a failure.
func (a *App) deleteEach(cmd *cobra.Command, kind string, names []string, remove func(context.Context, string) error) error {
	answers := []answer{}
	for _, name := range unique(names) {
		ans := changed(api.Operation{}, remove(cmd.Context(), name))
		if ans.Ref = name; ans.err != nil {
			ans.Error = problemOf(ans.err)
		}
		answers = append(answers, ans)
	}
	return a.tellEach(cmd.Context(), "deleting", kind+" ", answers)
}
