package install

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"banger/api"
)

// owner is the user an installation belongs to.
type owner struct {
	name     string
	uid, gid int
}

// ownerPattern is what systemd takes as a user name without complaint, and
// what can stand in a unit file as it is.
var ownerPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_-]{0,30}$`) })

// findOwner asks the name service switch, so that users who are in no file are
// found too.
func (h *host) findOwner(ctx context.Context, name string) (owner, error) {
	if name == "" {
		return owner{}, api.BadRequest("cannot install banger: no owner is named").WithHint("name the user who may make VMs: --owner USER")
	}
	if !ownerPattern().MatchString(name) {
		return owner{}, api.BadRequest("cannot install banger for %q: that is not a user name systemd accepts", name)
	}
	out, err := h.run(ctx, "getent", "passwd", name)
	if e, ok := errors.AsType[*commandError](err); ok && e.code == 2 {
		return owner{}, api.BadRequest("cannot install banger for %s: there is no such user", name)
	}
	if err != nil {
		return owner{}, fmt.Errorf("cannot look up user %s: %w", name, err)
	}
	fields := strings.Split(strings.TrimSuffix(out, "\n"), ":")
	if len(fields) < 4 || fields[0] != name {
		return owner{}, fmt.Errorf("cannot look up user %s: getent answers %q", name, out)
	}
	uid, err1 := strconv.Atoi(fields[2])
	gid, err2 := strconv.Atoi(fields[3])
	if err := errors.Join(err1, err2); err != nil {
		return owner{}, fmt.Errorf("cannot look up user %s: %w", name, err)
	}
	if uid == 0 || gid == 0 {
		return owner{}, api.BadRequest("cannot install banger for %s: the owner may not be root (uid %d, gid %d)", name, uid, gid).
			WithHint("the daemon needs no rights; name an ordinary user: --owner USER")
	}
	return owner{name: name, uid: uid, gid: gid}, nil
}
