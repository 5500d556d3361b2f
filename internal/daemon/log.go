package daemon

import (
	"context"
	"log/slog"

	"banger/internal/jsonhttp"
)

// LogHandler adds the operation id of the context to every record, so that one
// change can be followed through CLI, daemon and helper.
type LogHandler struct{ slog.Handler }

// Handle implements slog.Handler.
func (h LogHandler) Handle(ctx context.Context, r slog.Record) error {
	if id := jsonhttp.Operation(ctx); id != "" {
		r.AddAttrs(slog.String("operation", id))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h LogHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return LogHandler{h.Handler.WithAttrs(a)}
}

// WithGroup implements slog.Handler.
func (h LogHandler) WithGroup(name string) slog.Handler {
	return LogHandler{h.Handler.WithGroup(name)}
}
