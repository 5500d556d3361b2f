// Command bangerd is banger's daemon. It runs as the owner of an installation,
// without any capability, and is started by systemd through its socket.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"banger/internal/config"
	bangerd "banger/internal/daemon"
	"banger/internal/paths"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bangerd:", err)
		os.Exit(1)
	}
}

func run() error {
	syscall.Umask(0o077) // nothing of the owner's is for others
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	c, err := config.Load(paths.ConfigFile)
	if err != nil {
		return err
	}
	log := slog.New(bangerd.LogHandler{Handler: slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: c.LogLevel})})
	listeners, err := activation.Listeners()
	if err != nil {
		return fmt.Errorf("cannot take the socket from systemd: %w", err)
	}
	if len(listeners) != 1 {
		return fmt.Errorf("want one socket from systemd, got %d: bangerd is started by bangerd.socket", len(listeners))
	}
	d, err := bangerd.Open(ctx, log)
	if err != nil {
		return err
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return errors.Join(fmt.Errorf("cannot tell systemd: %w", err), d.Close())
	}
	return errors.Join(d.Serve(ctx, listeners[0]), d.Close())
}
