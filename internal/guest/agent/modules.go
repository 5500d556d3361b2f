package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// moduleDir holds the modules in the order of their names; whoever built the
// initrd took care of dependencies.
const moduleDir = "/modules"

// loadModules loads every module. It goes on after a failure, since a kernel
// or a machine may lack what one of them needs; what is really missing shows
// when it is used.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir) // sorted by name
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot list modules: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".ko") {
			continue
		}
		if err := loadModule(filepath.Join(dir, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("cannot load module %s: %w", e.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func loadModule(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.FinitModule(fd, "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
