package machine

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/api"
	"banger/internal/paths"
)

// programs are what `banger system install` expects beside itself.
var programs = []string{"banger", "bangerd", "banger-helper", "banger-agent", "firecracker", "jailer"}

// binaries are the programs to install in a machine.
type binaries struct {
	paths []string // in the order of programs
	hash  string
}

// findBinaries looks for the programs in dir, or where InitOptions.Binaries says.
func findBinaries(dir string) (binaries, error) {
	dirs := []string{dir}
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return binaries{}, fmt.Errorf("cannot find banger's programs: %w", err)
		}
		dirs = []string{filepath.Dir(self), paths.LibexecDir}
	}
	var b binaries
	var hashes []string
	for _, name := range programs {
		path, err := findIn(dirs, name)
		if err != nil {
			return binaries{}, err
		}
		hash, err := fileHash(path)
		if err != nil {
			return binaries{}, fmt.Errorf("cannot read program: %w", err)
		}
		b.paths = append(b.paths, path)
		hashes = append(hashes, hash)
	}
	b.hash = textHash(hashes...)
	return b, nil
}

func findIn(dirs []string, name string) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() {
			return path, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("cannot look for %s: %w", name, err)
		}
	}
	return "", api.NotFound("cannot find the program %s in %s", name, strings.Join(dirs, " or ")).
		WithHint("build it: make build")
}

// writeTar writes the programs and the guest kernel, if there is one, as a tar
// without directories.
func writeTar(w io.Writer, bins binaries, own guestKernel) error {
	t := tar.NewWriter(w)
	for _, path := range bins.paths {
		if err := addPath(t, path, filepath.Base(path), 0o755); err != nil {
			return err
		}
	}
	if own.path != "" {
		if err := addPath(t, own.path, guestKernelFile, 0o644); err != nil {
			return err
		}
	}
	return t.Close()
}

func addPath(t *tar.Writer, path, name string, mode int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}
