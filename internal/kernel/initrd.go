package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// BuildInitrd writes the initrd of the kernel in dir to out, which it replaces
// in one step: agent as /init, the kernel's modules, /dev with a console. The
// same input gives the same bytes. It is not compressed: it is small, and
// every guest would pay for unpacking it.
func BuildInitrd(dir, agent, out string) error {
	tmp, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".*")
	if err != nil {
		return fmt.Errorf("cannot build initrd: %w", err)
	}
	err = errors.Join(writeInitrd(tmp, dir, agent), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), out)
	}
	if err == nil {
		err = syncPath(filepath.Dir(out))
	}
	if err != nil {
		if rmErr := os.Remove(tmp.Name()); !errors.Is(rmErr, os.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
		return fmt.Errorf("cannot build initrd: %w", err)
	}
	return nil
}

func writeInitrd(w io.Writer, dir, agent string) error {
	buf := bufio.NewWriterSize(w, 256<<10)
	c := cpioWriter{w: buf}
	if err := c.file("init", unix.S_IFREG|0o755, agent); err != nil {
		return err
	}
	c.entry(cpioEntry{name: "modules", mode: unix.S_IFDIR | 0o755})
	mods, err := os.ReadDir(filepath.Join(dir, dirModules)) // sorted by name
	if err != nil {
		return err
	}
	for _, m := range mods {
		if err := c.file("modules/"+m.Name(), unix.S_IFREG|0o644, filepath.Join(dir, dirModules, m.Name())); err != nil {
			return err
		}
	}
	c.entry(cpioEntry{name: "dev", mode: unix.S_IFDIR | 0o755})
	c.entry(cpioEntry{name: "dev/console", mode: unix.S_IFCHR | 0o600, major: 5, minor: 1})
	if err := c.close(); err != nil {
		return err
	}
	return buf.Flush()
}

func syncPath(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
