// Command bangerd is banger's daemon. It runs as the owner of an installation,
// without any capability, and is started by systemd through its socket.
//
// "bangerd try-kvm" runs a test guest on the open /dev/kvm that is its standard input.
// banger-helper starts it, in a unit without any right, when doctor asks.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"banger/internal/config"
	bangerd "banger/internal/daemon"
	"banger/internal/kvm"
	"banger/internal/paths"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "try-kvm" {
		if err := kvm.Try(os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err) // doctor says where it comes from
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bangerd:", err)
		os.Exit(1)
	}
}

func run() error {
	syscall.Umask(0o077) // nothing of the owner's is for others
	// A log that nobody takes any more ends no stop of guests while the host goes down.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	c, err := config.Load(paths.ConfigFile)
	if err != nil {
		return err
	}
	log := slog.New(bangerd.LogHandler{Handler: slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: c.LogLevel})})
	inherited, err := sortSockets(activation.Files(true))
	if err != nil {
		return fmt.Errorf("cannot take the sockets from systemd: %w", err)
	}
	d, err := bangerd.Open(ctx, log)
	if err != nil {
		return err
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return errors.Join(fmt.Errorf("cannot tell systemd: %w", err), d.Close())
	}
	return errors.Join(serve(ctx, d, inherited, log), d.Close())
}

// serve returns when both the API and the names are not served any more. Without
// names the daemon goes on: VMs are reachable by other ways.
func serve(ctx context.Context, d *bangerd.Daemon, s sockets, log *slog.Logger) error {
	ctx, stop := context.WithCancel(ctx)
	var names sync.WaitGroup
	if len(s.dnsPackets) == 0 && len(s.dnsListeners) == 0 {
		log.Warn("names of VMs are not served: banger-dns.socket gave no sockets")
	} else {
		names.Go(func() {
			if err := d.ServeNames(ctx, s.dnsPackets, s.dnsListeners); err != nil {
				log.Error(err.Error())
			}
		})
	}
	err := d.Serve(ctx, s.api)
	stop()
	names.Wait()
	return err
}
