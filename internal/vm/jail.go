package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
	"banger/internal/jsonhttp"
	"banger/internal/paths"
	"banger/internal/store"
)

// jail reaches the sockets in one VM's jail. Everything in there belongs to a
// possibly hostile VMM, which may rename, link and listen as it likes: so no
// link is followed, the path cannot leave the jail, and whoever listens must
// have the VM's own uid.
type jail struct {
	root string
	uid  int
}

func jailOf(id string, uid int) jail { return jail{path.Join(paths.JailDir, id, "root"), uid} }

func (m *Manager) jailOf(v *store.VM) jail { return jail{path.Join(m.jails, v.ID, "root"), v.UID} }

// dial connects to the socket at name, an absolute path inside the jail.
func (j jail) dial(ctx context.Context, name string) (*net.UnixConn, error) {
	root, err := unix.Open(j.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open jail %s: %w", j.root, err)
	}
	defer unix.Close(root)
	sock, err := unix.Openat2(root, strings.TrimPrefix(name, "/"), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot open %s in jail: %w", name, err)
	}
	defer unix.Close(sock)
	var st unix.Stat_t
	if err := unix.Fstat(sock, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("%s in jail is not a socket", name)
	}
	// By descriptor: sun_path's 108 bytes never matter and nobody can swap it.
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", sock))
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %s in jail: %w", name, err)
	}
	u := c.(*net.UnixConn)
	uid, err := jsonhttp.PeerUID(u)
	if err == nil && int(uid) != j.uid {
		err = fmt.Errorf("uid %d listens on %s in jail, want %d", uid, name, j.uid)
	}
	if err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return u, nil
}

func (j jail) dialAPI(ctx context.Context) (net.Conn, error) {
	return j.dial(ctx, paths.JailAPI)
}

// dialGuest connects to a vsock port of the guest. The error is
// guest.ErrRefused when the guest is there and nobody listens.
func (j jail) dialGuest(ctx context.Context, port uint32) (*net.UnixConn, error) {
	c, err := j.dial(ctx, paths.JailVsock)
	if err != nil {
		return nil, err
	}
	if err := guest.Connect(ctx, c, port); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// agent returns a client of the guest's agent.
func (j jail) agent() *guest.Client {
	return guest.NewClient(func(ctx context.Context, port uint32) (net.Conn, error) { return j.dialGuest(ctx, port) })
}
