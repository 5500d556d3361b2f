package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
)

// chooseRange reads the host's tables and decides on the VMs' ids.
func (h *host) chooseRange(ctx context.Context) (idChoice, error) {
	var t idTables
	for path, text := range map[string]*string{
		subUIDFile: &t.subuid, subGIDFile: &t.subgid, "/etc/passwd": &t.passwd, "/etc/group": &t.group,
	} {
		raw, err := os.ReadFile(h.at(path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return idChoice{}, fmt.Errorf("cannot reserve ids for VMs: %w", err)
		}
		*text = string(raw)
	}
	// Also accounts that are in no file, as far as their directory lists them.
	for database, text := range map[string]*string{"passwd": &t.passwd, "group": &t.group} {
		out, err := h.run(ctx, "getent", database)
		const noEnumeration = 3
		if e, ok := errors.AsType[*commandError](err); err != nil && (!ok || e.code != noEnumeration) {
			return idChoice{}, fmt.Errorf("cannot reserve ids for VMs: %w", err)
		}
		*text += "\n" + out
	}
	choice, err := t.choose()
	if err != nil {
		return idChoice{}, api.Conflict("cannot reserve ids for VMs: %v", err).
			WithHint("mend %s and %s and repeat", subUIDFile, subGIDFile)
	}
	return choice, nil
}

// reserveRange writes the chosen range down, under the lock that useradd and
// its like take.
func (h *host) reserveRange(ctx context.Context, chosen idChoice) error {
	lines := chosen.lines()
	if len(lines) == 0 {
		return nil
	}
	return h.withAccountLock(ctx, func() error {
		now, err := h.chooseRange(ctx)
		if err != nil {
			return err
		}
		if now != chosen {
			return api.Conflict("cannot reserve ids for VMs: %s or %s has just been changed", subUIDFile, subGIDFile).
				WithHint("repeat the command")
		}
		for _, path := range []string{subUIDFile, subGIDFile} {
			line, ok := lines[path]
			if !ok {
				continue
			}
			err := h.editTable(path, func(text string) string {
				if text != "" && !strings.HasSuffix(text, "\n") {
					text += "\n"
				}
				return text + line + "\n"
			})
			if err != nil {
				return fmt.Errorf("cannot reserve ids for VMs: %w", err)
			}
			h.say("reserved %s in %s", line, path)
		}
		return nil
	})
}

// returnRange takes lines out of the tables again, where they still stand as
// they were written.
func (h *host) returnRange(ctx context.Context, m *manifest) error {
	if len(m.Lines) == 0 {
		return nil
	}
	return h.withAccountLock(ctx, func() error {
		for _, path := range []string{subUIDFile, subGIDFile} {
			line, ok := m.Lines[path]
			if !ok {
				continue
			}
			found := false
			err := h.editTable(path, func(text string) string {
				var kept strings.Builder
				for l := range strings.Lines(text) {
					if strings.TrimSuffix(l, "\n") == line {
						found = true
						continue
					}
					kept.WriteString(l)
				}
				return kept.String()
			})
			if err != nil {
				return fmt.Errorf("cannot return the ids of VMs: %w", err)
			}
			if found {
				h.say("removed %s from %s", line, path)
			}
			delete(m.Lines, path)
		}
		return nil
	})
}

// editTable replaces the text of a system table, keeping its mode and owner.
func (h *host) editTable(path string, edit func(string) string) error {
	mode, uid, gid := fs.FileMode(0o644), h.rootUID, h.rootGID
	info, err := os.Lstat(h.at(path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", path)
	default:
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("cannot tell whose file %s is", path)
		}
		mode, uid, gid = info.Mode(), int(st.Uid), int(st.Gid)
	}
	raw, err := os.ReadFile(h.at(path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := edit(string(raw))
	if text == string(raw) {
		return nil
	}
	return replaceFile(h.at(path), mode, uid, gid, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

const (
	accountLock = "/etc/.pwd.lock" // see lckpwdf(3)
	// lockPatience is how long lckpwdf itself waits.
	lockPatience = 15 * time.Second
	lockInterval = 100 * time.Millisecond
)

// withAccountLock runs f while no other program edits the account files. The
// lock is polled because the waiting form of fcntl knows no deadline.
func (h *host) withAccountLock(ctx context.Context, f func() error) (err error) {
	lock, err := os.OpenFile(h.at(accountLock), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("cannot lock the account files: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart})
		if err == nil {
			return f()
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot lock the account files: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot lock the account files: another program holds %s", accountLock)
		case <-time.After(lockInterval):
		}
	}
}
