package doctor

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"sync"

	"banger/internal/install"
)

func (h Host) uidRange(ctx context.Context) Finding {
	var texts [4]string
	for i, path := range []string{"/etc/subuid", "/etc/subgid", "/etc/passwd", "/etc/group"} {
		text, err := h.read(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Warn("", "cannot tell: %v", err)
		}
		texts[i] = text
	}
	n := h.askDirectory(ctx)
	tables := install.IDTables{SubUID: texts[0], SubGID: texts[1], Passwd: texts[2] + "\n" + n.passwd, Group: texts[3] + "\n" + n.group}
	if found := tables.Conflicts(h.Record); len(found) > 0 {
		return Fail("remove what overlaps from /etc/subuid, /etc/subgid, /etc/passwd or /etc/group, or have your directory service give other ids",
			"%s", strings.Join(found, "; "))
	}
	first, last := h.Record.UIDBase, h.Record.UIDBase+h.Record.UIDCount-1
	if n.silent != nil {
		return Warn("see what `getent passwd "+strconv.Itoa(first)+"` says: nothing, if all is well",
			"%d to %d are reserved, and no file gives one to anybody; other accounts cannot be looked at: %s", first, last, oneLine(n.silent.Error()))
	}
	return Pass("%d to %d are reserved, and nobody else's%s", first, last, n.remark)
}

// directory is what the name service switch tells: of files again, and of LDAP,
// sssd, systemd and the like. Many of these find an account that is asked for and
// list none, so that the whole range cannot be looked at.
type directory struct {
	passwd, group string
	silent        error  // nobody could be asked for single ids
	remark        string // what was not looked at
}

// askDirectory asks for all accounts and for some ids, at the same time.
func (h Host) askDirectory(ctx context.Context) (d directory) {
	groups := h.telling()
	var out [4]string
	var errs [4]error
	var wg sync.WaitGroup
	for i, argv := range [][]string{
		{"getent", "passwd"}, append([]string{"getent", "passwd", "banger"}, groups...),
		{"getent", "group"}, append([]string{"getent", "group"}, groups...),
	} {
		wg.Go(func() { out[i], errs[i] = h.getent(ctx, argv...) })
	}
	wg.Wait()
	d.passwd, d.group = out[0]+"\n"+out[1], out[2]+"\n"+out[3]
	switch {
	case errors.Is(errs[1], errNoProgram):
		d.remark = " in a file; there is no getent, which could ask for other accounts"
	case errs[1] != nil || errs[3] != nil:
		d.silent = errors.Join(errs[1], errs[3])
	case errs[0] != nil || errs[2] != nil:
		d.remark = ", as far as accounts can be listed"
	}
	return d
}

// telling are ids of the range that somebody has who has any: the ends, the
// middle, and the administrator and the users' group of a Windows domain, which
// sssd and winbind count from the beginning of a range.
func (h Host) telling() (ids []string) {
	for _, n := range []int{0, 500, 513, h.Record.UIDCount / 2, h.Record.UIDCount - 1} {
		ids = append(ids, strconv.Itoa(h.Record.UIDBase+n))
	}
	return ids
}

// getent is content with a directory that has none of the names, or lists nobody.
func (h Host) getent(ctx context.Context, argv ...string) (string, error) {
	const unknown, noEnumeration = exitCode(2), exitCode(3)
	out, err := h.run(ctx, argv...)
	if errors.Is(err, unknown) || errors.Is(err, noEnumeration) {
		err = nil
	}
	return out[:strings.LastIndexByte(out, '\n')+1], err // the last line may be cut
}
