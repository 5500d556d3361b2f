package kernel

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"banger/api"
)

// Names within the archive that Pack writes and Import reads.
const (
	memberKernel  = "kernel"
	memberModules = "modules/"
	fileDep       = "modules.dep"
	fileBuiltin   = "modules.builtin"
)

// Pack writes the archive that Import reads: the kernel file as it is and, of
// the modules directory (/lib/modules/RELEASE; "" for none), the two lists and
// those modules a guest needs. Nothing outside of modulesDir is read, whatever
// links lie in it.
func Pack(ctx context.Context, w io.Writer, kernelFile, modulesDir string) error {
	tw := tar.NewWriter(w)
	f, err := os.OpenFile(kernelFile, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not hold us
	if err != nil {
		return fmt.Errorf("cannot read the kernel: %w", err)
	}
	defer f.Close()
	if err := packFile(ctx, tw, memberKernel, f); err != nil {
		return err
	}
	if modulesDir != "" {
		if err := packModules(ctx, tw, modulesDir); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("cannot write the kernel archive: %w", err)
	}
	return nil
}

func packModules(ctx context.Context, tw *tar.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("cannot read the kernel's modules: %w", err)
	}
	defer root.Close()
	dep, err := readList(root, fileDep)
	if errors.Is(err, fs.ErrNotExist) {
		return api.BadRequest("%s is no modules directory: it has no %s", dir, fileDep).
			WithHint("give /lib/modules/RELEASE of the kernel; if it is, run depmod RELEASE")
	}
	if err != nil {
		return err
	}
	builtin, err := readList(root, fileBuiltin)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mods, err := loadOrder(dep, builtin)
	if err != nil {
		return err
	}
	if err := packBytes(tw, memberModules+fileDep, dep); err != nil {
		return err
	}
	if err := packBytes(tw, memberModules+fileBuiltin, builtin); err != nil {
		return err
	}
	for _, m := range mods {
		if err := packModule(ctx, tw, root, m); err != nil {
			return err
		}
	}
	return nil
}

func readList(root *os.Root, name string) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read the kernel's modules: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxDepFile+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the kernel's modules: %w", err)
	}
	if len(data) > maxDepFile {
		return nil, fmt.Errorf("cannot read the kernel's modules: %s is larger than %d MiB", name, maxDepFile>>20)
	}
	return data, nil
}

func packBytes(tw *tar.Writer, name string, data []byte) error {
	err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))})
	if err == nil {
		_, err = tw.Write(data)
	}
	if err != nil {
		return fmt.Errorf("cannot write the kernel archive: %w", err)
	}
	return nil
}

func packModule(ctx context.Context, tw *tar.Writer, root *os.Root, m module) error {
	f, err := root.OpenFile(m.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("cannot read module %s: %w", m.name, err)
	}
	defer f.Close()
	return packFile(ctx, tw, memberModules+m.path, f)
}

// packFile writes exactly the size the file had when it was opened: a file
// that shrinks meanwhile is an error, what is added later is not read.
func packFile(ctx context.Context, tw *tar.Writer, name string, f *os.File) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", f.Name(), err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("cannot read %s: it is no regular file", f.Name())
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: info.Size()}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("cannot write the kernel archive: %w", err)
	}
	if _, err := io.CopyN(tw, f, info.Size()); err != nil {
		return fmt.Errorf("cannot copy %s into the kernel archive: %w", f.Name(), err)
	}
	return nil
}
