package dns

import (
	"net/netip"
	"sync"
	"time"
)

// What one client, and all together, may ask of the server.
const (
	queriesPerSecond  = 200
	burst             = 400
	forwardsPerClient = 32
	forwardsInAll     = 256
	connsPerClient    = 8
	connsInAll        = 128
	maxClients        = 4096 // remembered; the idle ones are forgotten then
)

// limits keeps account of clients.
type limits struct {
	now func() time.Time

	mu       sync.Mutex
	clients  map[netip.Addr]*account // guarded by mu
	forwards int                     // guarded by mu
	conns    int                     // guarded by mu
}

type account struct {
	tokens          float64
	at              time.Time
	forwards, conns int
}

func newLimits(now func() time.Time) *limits {
	return &limits{now: now, clients: map[netip.Addr]*account{}}
}

// accountLocked returns nil if there are too many clients.
func (l *limits) accountLocked(client netip.Addr) *account {
	a, ok := l.clients[client]
	if !ok {
		if len(l.clients) >= maxClients {
			l.forgetLocked()
		}
		if len(l.clients) >= maxClients {
			return nil
		}
		a = &account{tokens: burst, at: l.now()}
		l.clients[client] = a
	}
	return a
}

// forgetLocked drops the accounts that are as new ones would be.
func (l *limits) forgetLocked() {
	const full = burst / queriesPerSecond * time.Second
	for addr, a := range l.clients {
		if a.forwards == 0 && a.conns == 0 && l.now().Sub(a.at) > full {
			delete(l.clients, addr)
		}
	}
}

// query reports whether client may ask now.
func (l *limits) query(client netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.accountLocked(client)
	if a == nil {
		return false
	}
	now := l.now()
	a.tokens = min(burst, a.tokens+now.Sub(a.at).Seconds()*queriesPerSecond)
	a.at = now
	if a.tokens < 1 {
		return false
	}
	a.tokens--
	return true
}

// forward reports whether one more question of client may go out. done must be
// called when it is answered.
func (l *limits) forward(client netip.Addr) (done func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.accountLocked(client)
	if a == nil || a.forwards >= forwardsPerClient || l.forwards >= forwardsInAll {
		return nil, false
	}
	a.forwards++
	l.forwards++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		a.forwards--
		l.forwards--
	}, true
}

// conn is forward for connections.
func (l *limits) conn(client netip.Addr) (done func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.accountLocked(client)
	if a == nil || a.conns >= connsPerClient || l.conns >= connsInAll {
		return nil, false
	}
	a.conns++
	l.conns++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		a.conns--
		l.conns--
	}, true
}
