package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	resolvedName  = "org.freedesktop.resolve1"
	resolvedIface = resolvedName + ".Manager"
	zone          = "vm"
)

type linkDNS struct {
	Family  int32
	Address []byte
}

type linkDomain struct {
	Name    string
	Routing bool // only to say which names this link's server is for
}

// tellResolver makes systemd-resolved, where it runs, ask the bridge's address
// for names of the zone, and for no others. It is told again when the link is
// another one; forgetResolver when resolved is another one.
func (n *network) tellResolver(ctx context.Context, index int32) error {
	n.mu.Lock()
	told := n.resolver == index
	n.mu.Unlock()
	if told {
		return nil
	}
	prefix, err := netip.ParsePrefix(n.record.Network)
	if err != nil {
		return err
	}
	conn, err := n.bus.get(ctx)
	if err != nil {
		return err
	}
	o := conn.Object(resolvedName, "/org/freedesktop/resolve1")
	for _, call := range []struct {
		method string
		value  any
	}{
		{"SetLinkDNS", []linkDNS{{unix.AF_INET, prefix.Addr().AsSlice()}}},
		{"SetLinkDomains", []linkDomain{{zone, true}}},
		{"SetLinkDefaultRoute", false},
	} {
		err := o.CallWithContext(ctx, resolvedIface+"."+call.method, dbus.FlagNoAutoStart, index, call.value).Err
		if e, ok := errors.AsType[dbus.Error](err); ok &&
			(e.Name == "org.freedesktop.DBus.Error.ServiceUnknown" || e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner") {
			return nil // it does not run; its start is noticed
		}
		if err != nil {
			return fmt.Errorf("cannot route names of the zone %s to the bridge (%s): %w", zone, call.method, err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resolver = index
	return nil
}

func (n *network) forgetResolver() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resolver = 0
}

// watchResolver calls changed whenever systemd-resolved comes, until ctx ends
// or the bus is lost.
func (n *network) watchResolver(ctx context.Context, changed func()) error {
	conn, err := n.bus.get(ctx)
	if err != nil {
		return err
	}
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	defer conn.RemoveSignal(signals)
	rule := []dbus.MatchOption{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, resolvedName)}
	if err := conn.AddMatchSignalContext(ctx, rule...); err != nil {
		return fmt.Errorf("cannot watch for systemd-resolved: %w", err)
	}
	for {
		select {
		case sig, ok := <-signals:
			if !ok {
				return errors.New("connection to the system bus was lost")
			}
			if sig.Name == "org.freedesktop.DBus.NameOwnerChanged" && len(sig.Body) == 3 && sig.Body[0] == resolvedName && sig.Body[2] != "" {
				n.forgetResolver()
				changed()
			}
		case <-ctx.Done():
			return nil
		}
	}
}
