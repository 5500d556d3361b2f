// Command banger-helper holds all of banger's rights: it is started by
// systemd, as root with few capabilities, when somebody connects to its socket,
// and answers the verbs of package internal/helper. See docs/security.md.
//
// "banger-helper cleanup ID" removes what a VM left behind. systemd runs it
// after every end of a VM's unit. "banger-helper fsck UID HOW NODE" turns into
// e2fsck, in the unit that vm.fsck starts. "banger-helper forget-network" removes
// bridge and rules, when banger is uninstalled or gets another network. "banger-helper policy" prints
// everything it can be asked and may touch; it is also docs/helper-policy.txt.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"banger/docs"
	"banger/internal/helper/server"
	"banger/internal/installed"
	"banger/internal/paths"
	"banger/internal/version"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "banger-helper:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: withoutTime})))
	if len(args) == 0 || args[0] == "cleanup" {
		signal.Ignore(syscall.SIGPIPE) // a journal that has gone, as when the host goes down, ends no clean-up
	}
	switch {
	case len(args) == 0:
		return serve(ctx)
	case len(args) == 1 && args[0] == "forget-network":
		record, err := installed.Load(paths.InstallFile)
		if err != nil {
			return err
		}
		return server.ForgetNetwork(ctx, record)
	case len(args) == 1 && args[0] == "policy":
		_, err := fmt.Fprint(os.Stdout, docs.HelperPolicy)
		return err
	case len(args) == 2 && args[0] == "cleanup":
		return server.Cleanup(ctx, args[1])
	case len(args) == 4 && args[0] == "fsck":
		err := server.Fsck(args[1], args[2], args[3])
		fmt.Fprintln(os.Stderr, "banger-helper:", err)
		if errors.Is(err, server.ErrShared) {
			os.Exit(server.FsckShared)
		}
		os.Exit(server.FsckFailed) // whoever waits for e2fsck would read 1 as "mended"
	case len(args) == 1 && args[0] == "--version":
		_, err := fmt.Fprintln(os.Stdout, "banger-helper", version.Version)
		return err
	}
	return errors.New("usage: banger-helper, started by banger-helper.socket, or: banger-helper policy|cleanup ID")
}

// withoutTime drops what the journal notes better.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

func serve(ctx context.Context) error {
	l, kept, err := inherited()
	if err != nil {
		return err
	}
	// The live heap is below a megabyte. Collecting often costs nothing at a
	// few requests for each VM, and keeps a process that is always there small.
	debug.SetGCPercent(20)
	record, err := installed.Load(paths.InstallFile)
	if err != nil {
		return err
	}
	s, err := server.New(record, server.InstalledPlaces())
	if err != nil {
		return err
	}
	s.Keep(kept)
	// The socket of systemd stays known: it is given descriptors to keep.
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return fmt.Errorf("cannot tell systemd that the helper is ready: %w", err)
	}
	return s.Serve(ctx, l)
}

// inherited takes over what systemd hands on: our socket, and the namespaces it
// kept while the helper was restarted.
func inherited() (l net.Listener, kept []*os.File, err error) {
	const socket = "banger-helper.socket"
	for _, f := range activation.Files(true) {
		if f.Name() != socket {
			kept = append(kept, f)
			continue
		}
		if l, err = net.FileListener(f); err != nil {
			return nil, nil, fmt.Errorf("cannot use the socket from systemd: %w", err)
		}
		if err := f.Close(); err != nil { // the listener has its own copy
			return nil, nil, err
		}
	}
	if l == nil {
		return nil, nil, fmt.Errorf("got no socket from systemd: start %s and connect to %s", socket, paths.HelperSocket)
	}
	return l, kept, nil
}
