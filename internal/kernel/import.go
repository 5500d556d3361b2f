// Package kernel turns a distribution's kernel into what Firecracker can boot:
// an uncompressed ELF file and an initrd that holds banger's agent and the few
// modules a guest needs to reach its root disk and to be reached over vsock.
//
// Pack runs in the CLI and gathers kernel and modules from the caller's
// machine. Import and BuildInitrd run in bangerd, as an ordinary user; what
// Import reads may be hostile. An imported kernel is a directory:
//
//	vmlinux              the ELF kernel
//	modules/NN-name.ko   uncompressed, lexical order = load order
//	kernel.json          Info
package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"banger/api"
)

// Files of an imported kernel.
const (
	fileKernel  = "vmlinux"
	fileInfo    = "kernel.json"
	dirModules  = "modules"
	dirStaging  = ".import"
	stagedImage = dirStaging + "/kernel"
)

// headroomMiB is what a guest needs beside the kernel itself: page tables, the
// initrd and the agent. Less does not reach the agent.
const headroomMiB = 32

// Info is what is known of an imported kernel.
type Info struct {
	// Release is what uname -r will say.
	Release string `json:"release"`
	// Size and SHA256 are of the uncompressed ELF file.
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// Modules are the names of the initrd's modules, in load order.
	Modules []string `json:"modules"`
	// MinMemoryMiB is the least memory in which this kernel can come up.
	MinMemoryMiB int `json:"min_memory_mib"`
}

// Import reads an archive made by Pack into dir, an existing empty directory.
// The result is on disk when it returns; when it fails, dir is empty again.
func Import(ctx context.Context, r io.Reader, dir string) (info Info, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Info{}, fmt.Errorf("cannot import kernel: %w", err)
	}
	if len(entries) > 0 {
		return Info{}, fmt.Errorf("cannot import kernel: %s is not empty", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Info{}, fmt.Errorf("cannot import kernel: %w", err)
	}
	defer root.Close()
	im := importer{ctx: ctx, root: root, staged: map[string]string{}}
	defer func() {
		leftovers := []string{dirStaging}
		if err != nil {
			leftovers = append(leftovers, fileKernel, dirModules, fileInfo)
		}
		for _, name := range leftovers {
			err = errors.Join(err, root.RemoveAll(name))
		}
		err = problem(err)
	}()
	for _, name := range []string{dirStaging, dirModules} {
		if err := root.Mkdir(name, 0o700); err != nil {
			return Info{}, fmt.Errorf("cannot import kernel: %w", err)
		}
	}
	if err := im.readArchive(r); err != nil {
		return Info{}, err
	}
	return im.install()
}

// install makes the final files from the staged ones.
func (im *importer) install() (Info, error) {
	ex, err := im.installKernel()
	if err != nil {
		return Info{}, err
	}
	info := Info{
		Release: ex.release, Size: ex.size, SHA256: ex.sha256, Modules: []string{},
		MinMemoryMiB: int((ex.end+1<<20-1)>>20) + headroomMiB,
	}
	if im.haveDep {
		mods, err := loadOrder(im.dep, im.builtin)
		if err != nil {
			return Info{}, err
		}
		for i, m := range mods {
			if err := im.installModule(i, m, info.Release); err != nil {
				return Info{}, err
			}
			info.Modules = append(info.Modules, m.name)
		}
	}
	raw, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return Info{}, err
	}
	if err := im.write(fileInfo, append(raw, '\n')); err != nil {
		return Info{}, err
	}
	for _, name := range []string{dirModules, "."} {
		if err := syncDir(im.root, name); err != nil {
			return Info{}, err
		}
	}
	return info, nil
}

func (im *importer) installKernel() (extracted, error) {
	src, err := im.root.Open(stagedImage)
	if err != nil {
		return extracted{}, fmt.Errorf("cannot import kernel: %w", err)
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return extracted{}, fmt.Errorf("cannot import kernel: %w", err)
	}
	var ex extracted
	err = im.create(fileKernel, func(w io.Writer) error {
		var err error
		ex, err = extract(src, st.Size(), w)
		return err
	})
	if err == nil && ex.release == "" {
		err = badKernel(errors.New("it does not say which Linux version it is"))
	}
	return ex, err
}

func (im *importer) installModule(i int, m module, release string) error {
	if im.staged[m.path] == "" {
		return api.BadRequest("the kernel archive lacks the module %s", m.path)
	}
	f, err := im.root.Open(im.staged[m.path])
	if err != nil {
		return fmt.Errorf("cannot import kernel: %w", err)
	}
	defer f.Close()
	data, err := unpackModule(f, m.name, release)
	if err != nil {
		return err
	}
	return im.write(fmt.Sprintf("%s/%03d-%s.ko", dirModules, i, m.name), data)
}

func (im *importer) write(name string, data []byte) error {
	return im.create(name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// create makes a file through fill and syncs it.
func (im *importer) create(name string, fill func(io.Writer) error) error {
	f, err := im.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot import kernel: %w", err)
	}
	defer f.Close() // the second time, if all went well
	if err := fill(contextWriter{im.ctx, f}); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("cannot import kernel: %w", err)
	}
	return nil
}

func syncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return fmt.Errorf("cannot import kernel: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("cannot import kernel: %w", err)
	}
	return nil
}

// problem gives a full disk its own code.
func problem(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return api.Problemf(507, api.CodeNoSpace, "cannot import kernel: no space is left in banger's state directory").
			WithHint("free some space, e.g. by deleting images or VMs that are not used")
	}
	return err
}
