// Package artifact keeps imported things (images, kernels) on disk: one
// directory each, named by an id, filled aside and moved into place when
// complete. What a crash leaves is recognised and swept.
package artifact

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"banger/api"
	"banger/internal/disk"
	"banger/internal/fault"
	"banger/internal/store"
)

var validName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`) })

// staging marks a directory that is still being filled.
const staging = ".import-"

// shelf is the directory of one kind of artifact.
type shelf struct {
	Dir  string
	Kind string // "image", "kernel": for errors
	// Reserve is how many bytes an import leaves free, more than a start asks for.
	Reserve int64

	mu   sync.Mutex
	busy map[string]bool // names being imported
}

// Import makes the artifact name. taken looks for the name in the store; fill
// writes the content into a fresh private directory, which is then moved to
// Path(id); record stores it. After an error nothing is left. The context that
// fill gets ends when the disk runs low: the disks of running VMs lie on it.
func (s *shelf) Import(ctx context.Context, name string, taken func() error,
	fill func(ctx context.Context, dir string) error, record func(ctx context.Context, id string) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot import %s %q: %w", s.Kind, name, err)
		}
	}()
	if !validName().MatchString(name) {
		return api.BadRequest("this is no name").
			WithHint("a name has 1 to 63 characters of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit")
	}
	release, err := s.begin(name, taken)
	if err != nil {
		return err
	}
	defer release()
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	id := hex.EncodeToString(b[:])
	dir := filepath.Join(s.Dir, staging+id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := fault.Point(ctx, "import.begun"); err != nil {
		return err
	}
	if err := s.fill(ctx, dir, fill); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // else the record could be there and the files gone
	return s.publish(ctx, id, &dir, record)
}

// unrecorded is a file in the directory of an artifact whose record is about to
// be made or removed. Without it, a directory that no record knows is kept: the
// records may be the older of the two.
const unrecorded = ".unrecorded"

// publish moves a filled directory into place and records it. dir is where it is.
func (s *shelf) publish(ctx context.Context, id string, dir *string, record func(context.Context, string) error) error {
	if err := fault.Point(ctx, "import.filled"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(*dir, unrecorded), nil, 0o600); err != nil {
		return err
	}
	if err := os.Rename(*dir, s.Path(id)); err != nil {
		return err
	}
	*dir = s.Path(id)
	if err := fault.Point(ctx, "import.moved"); err != nil {
		return err
	}
	if err := record(ctx, id); err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(*dir, unrecorded)) // where the record counts, Sweep does it later
	return nil
}

// lookEvery is how often free space is asked for; nothing tells of it.
const lookEvery = 200 * time.Millisecond

// fill runs f while enough is free.
func (s *shelf) fill(ctx context.Context, dir string, f func(context.Context, string) error) error {
	if err := s.room(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := s.room(); err != nil {
					cancel(err)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	err := f(ctx, dir)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (s *shelf) room() error {
	free, err := disk.Free(s.Dir)
	if err != nil {
		return err
	}
	if free < s.Reserve {
		return api.Problemf(507, api.CodeNoSpace, "no space: %d MiB are free in %s, and %d are kept for the VMs", free>>20, s.Dir, s.Reserve>>20).
			WithHint("delete what is no longer needed, see `banger image list` and `banger vm list`")
	}
	return nil
}

// begin takes the name for one import, so that the second of two finds out
// before it has moved all its bytes.
func (s *shelf) begin(name string, taken func() error) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[name] {
		return nil, api.Conflict("another import of that name is under way")
	}
	switch err := taken(); {
	case err == nil:
		return nil, api.Conflict("the name is taken").
			WithHint("choose another name, or `banger %s delete %s` first", s.Kind, name)
	case !errors.Is(err, store.ErrNotFound):
		return nil, err
	}
	if s.busy == nil {
		s.busy = map[string]bool{}
	}
	s.busy[name] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.busy, name)
	}, nil
}

// Delete removes an artifact: the record first, so that nothing new can be
// made from it, then the files. Both errors of the store are told to a person;
// usedBy names the VMs that hold it.
func (s *shelf) Delete(name, id string, usedBy []string, unrecord func() error) error {
	mark := filepath.Join(s.Path(id), unrecorded)
	_ = os.WriteFile(mark, nil, 0o600) // only for a crash in here; on a full disk the delete matters more
	err := unrecord()
	if err != nil {
		_ = os.Remove(mark) // else Sweep does it
	}
	switch {
	case errors.Is(err, store.ErrInUse):
		return api.Conflict("cannot delete %s %q: VMs are made from it: %s", s.Kind, name, strings.Join(usedBy, ", ")).
			WithHint("delete them first with `banger vm delete`")
	case err != nil:
		return err
	}
	if err := os.RemoveAll(s.Path(id)); err != nil {
		return fmt.Errorf("cannot remove the files of %s %q: %w", s.Kind, name, err)
	}
	return nil
}

// Missing is the answer to a name that does not exist.
func (s *shelf) Missing(name string) error {
	return api.NotFound("there is no %s %q", s.Kind, name).WithHint("see `banger %s list`", s.Kind)
}

// Path is where the artifact id lies.
func (s *shelf) Path(id string) string { return filepath.Join(s.Dir, id) }

// Sweep makes the shelf and removes what unfinished imports left. A directory
// without a record is only told of: the records may be the older of the two.
func (s *shelf) Sweep(ctx context.Context, log *slog.Logger, known map[string]bool) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the %s directory: %w", s.Kind, err)
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return fmt.Errorf("cannot read the %s directory: %w", s.Kind, err)
	}
	for _, e := range entries {
		mark := filepath.Join(s.Path(e.Name()), unrecorded)
		if known[e.Name()] {
			if err := os.Remove(mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
				log.WarnContext(ctx, "cannot complete an import", "kind", s.Kind, "error", err)
			}
			continue
		}
		_, err := os.Lstat(mark)
		if !strings.HasPrefix(e.Name(), staging) && err != nil {
			log.WarnContext(ctx, "no record knows this directory", "kind", s.Kind, "dir", s.Path(e.Name()))
			continue
		}
		log.InfoContext(ctx, "removing leftover", "kind", s.Kind, "dir", e.Name())
		if err := os.RemoveAll(s.Path(e.Name())); err != nil {
			return fmt.Errorf("cannot remove leftover: %w", err)
		}
	}
	return nil
}
