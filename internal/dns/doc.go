// Package dns serves the names of running VMs: the zone vm and the reverse
// names of the guests' network. To guests whose policy lets them out it is the
// resolver for everything else too, which it asks the host's resolvers for.
//
// It listens on nothing by itself: sockets come from systemd, since port 53
// needs a capability that bangerd does not have. Whoever asks is known by the
// address, so a guest's packet counts only if it came through the bridge,
// where every guest is pinned to its own address; strangers get no answer.
//
// Parts: table.go has the records, query.go reads what arrives, answer.go
// answers with authority, forward.go asks the host's resolvers, limits.go
// keeps one guest from taking all, server.go has the sockets.
package dns
