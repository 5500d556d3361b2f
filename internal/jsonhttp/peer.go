package jsonhttp

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"golang.org/x/sys/unix"

	"banger/api"
)

type peerKey struct{}

// PeerOf returns the uid at the other end of the Unix socket a request came
// on. ok is false when it could not be determined: treat that as a stranger.
func PeerOf(ctx context.Context) (uid uint32, ok bool) {
	uid, ok = ctx.Value(peerKey{}).(uint32)
	return uid, ok
}

func peerContext(ctx context.Context, c net.Conn) context.Context {
	if u, ok := c.(*net.UnixConn); ok {
		if uid, err := PeerUID(u); err == nil {
			return context.WithValue(ctx, peerKey{}, uid)
		}
	}
	return ctx
}

// PeerUID reads SO_PEERCRED of a connected Unix socket. For the connecting
// side it is the uid that called listen(2).
func PeerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("cannot read peer credentials: %w", credErr)
	}
	return cred.Uid, nil
}

// OnlyUIDs lets a request through when its peer is root or one of uids, and
// refuses what a browser could have been tricked into sending.
func OnlyUIDs(next http.Handler, uids ...uint32) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" || r.Header.Get("Referer") != "" {
			WriteError(w, api.Problemf(http.StatusForbidden, api.CodeForbidden, "requests from a browser are refused"))
			return
		}
		uid, ok := PeerOf(r.Context())
		allowed := ok && uid == 0
		for _, u := range uids {
			allowed = allowed || (ok && uid == u)
		}
		if !allowed {
			WriteError(w, api.Problemf(http.StatusForbidden, api.CodeForbidden, "uid %d may not use this socket", uid).
				WithHint("use banger as the owner named in /etc/banger/install.toml, or as root"))
			return
		}
		next.ServeHTTP(w, r)
	})
}
