package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// While the helper runs, and it does as long as a VM exists, it listens to what
// the kernel tells of changes to rules, links and addresses, and mends what is
// its own. docs/network.md tells what holds in between.

const (
	// mendPause bounds what a fight with another program can cost.
	mendPause = 200 * time.Millisecond
	// busPause is how long a lost bus is left alone.
	busPause = 5 * time.Second
)

// watch mends until ctx ends.
func (n *network) watch(ctx context.Context) error {
	rules, err := openNetlink(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return err
	}
	links, err := openNetlink(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR)
	if err != nil {
		return errors.Join(err, rules.f.Close())
	}
	stop := context.AfterFunc(ctx, func() {
		if err := errors.Join(rules.f.Close(), links.f.Close()); err != nil {
			slog.Warn("cannot close netlink", "err", err)
		}
	})
	defer stop()
	wake := make(chan struct{}, 1)
	changed := func() {
		select {
		case wake <- struct{}{}:
		default: // it will look anyway
		}
	}
	failed := make(chan error, 2)
	go func() { failed <- follow(rules, n.ruleEvents(changed)) }()
	go func() { failed <- follow(links, n.linkEvents(changed)) }()
	go n.keepResolver(ctx, changed)
	changed() // nobody watched while there was no helper
	for {
		select {
		case <-wake:
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("cannot watch the network: %w", err)
		case <-ctx.Done():
			return nil
		}
		err := n.check(ctx)
		if err != nil {
			slog.Warn("cannot mend the network", "err", err)
		}
		select {
		case <-time.After(mendPause):
		case <-ctx.Done():
			return nil
		}
		if err != nil {
			changed()
		}
	}
}

// check mends what is broken, if there is a VM; else bridge.ensure will.
func (n *network) check(ctx context.Context) error {
	if jails, err := os.ReadDir(n.places.Jails); err != nil || len(jails) == 0 {
		return err
	}
	n.mu.Lock()
	whole := n.good != 0 && !n.loose
	n.mu.Unlock()
	if whole {
		return n.bringUp(ctx)
	}
	start := time.Now()
	err := n.mend(ctx)
	slog.Info("mended the network", "ms", time.Since(start).Milliseconds(), "err", err)
	return err
}

// follow passes on what the kernel tells. What it could not tell, because
// nobody read it in time, may have been anything.
func follow(from netlink, event func(r reply)) error {
	buf := make([]byte, eventBuffer)
	for {
		replies, err := from.receive(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, errShort):
			event(reply{typ: unix.NLMSG_OVERRUN})
		case err != nil:
			return err
		}
		for _, r := range replies {
			event(r)
		}
	}
}

// ruleEvents gathers a transaction's messages up to its end, which says who
// did it.
func (n *network) ruleEvents(changed func()) func(reply) {
	ours, others := false, false
	return func(r reply) {
		if r.typ == unix.NLMSG_OVERRUN {
			n.broken()
			changed()
			return
		}
		c := parseChange(r)
		if c.generation == 0 {
			ours = ours || c.table == tableName
			others = others || c.table != tableName
			return
		}
		if n.judgeGeneration(c, ours) || others && c.by != n.name {
			changed()
		}
		ours, others = false, false
	}
}

// judgeGeneration notes a transaction and reports whether it broke our rules.
func (n *network) judgeGeneration(c change, ours bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.good == 0 || int32(c.generation-n.good) <= 0: // nothing to break, or known
	case ours && c.by != n.name && c.by != programName:
		n.good = 0
		slog.Warn("somebody changed the firewall rules of banger", "program", printable(c.by))
		return true
	case c.generation == n.good+1:
		n.good = c.generation
	}
	return false
}

// programName is what the kernel calls "banger-helper cleanup ID".
const programName = "banger-helper"

func (n *network) broken() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.good = 0
}

// linkEvents looks for a bridge that went, went down or lost its address.
func (n *network) linkEvents(changed func()) func(reply) {
	var bridge int32
	return func(r reply) {
		switch r.typ {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			l, name, ok := parseLink(r)
			if !ok || name != n.record.Bridge {
				return
			}
			bridge = l.index
			if r.typ == unix.RTM_NEWLINK && l.up {
				return
			}
		case unix.RTM_DELADDR:
			if bridge == 0 {
				if l, err := linkByName(n.record.Bridge); err == nil {
					bridge = l.index
				}
			}
			if len(r.body) < 8 || int32(binary.NativeEndian.Uint32(r.body[4:])) != bridge {
				return
			}
		case unix.NLMSG_OVERRUN: // who knows
		default:
			return
		}
		n.mu.Lock()
		n.loose = true
		n.mu.Unlock()
		changed()
	}
}

func (n *network) keepResolver(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		if err := n.watchResolver(ctx, changed); err != nil {
			slog.Warn("cannot follow systemd-resolved", "err", err)
		}
		select {
		case <-time.After(busPause):
			n.forgetResolver()
		case <-ctx.Done():
		}
	}
}
