package kernel

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"banger/api"
)

// Bounds of an archive: a whole modules tree fits, should somebody send one.
const (
	maxMembers      = 50_000
	maxModulesTotal = 2 << 30
)

// importer holds one import: first everything is staged, then installed, since
// the lists may come behind the modules they order.
type importer struct {
	ctx          context.Context
	root         *os.Root
	haveKernel   bool
	dep, builtin []byte
	haveDep      bool
	// staged maps a path below modules/ to the staged file.
	staged map[string]string
}

func (im *importer) readArchive(r io.Reader) error {
	tr := tar.NewReader(contextReader{im.ctx, r})
	var total int64
	for members := 0; ; members++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return im.badArchive(err)
		}
		if members >= maxMembers || h.Size > maxModulesTotal-total {
			return api.BadRequest("the kernel archive is too large")
		}
		total += h.Size
		if err := im.member(h, tr); err != nil {
			return err
		}
	}
	if !im.haveKernel {
		return api.BadRequest("the archive holds no kernel").
			WithHint("it must be a tar with a member named kernel, as banger kernel import makes it")
	}
	return nil
}

func (im *importer) member(h *tar.Header, r io.Reader) error {
	name := path.Clean(strings.TrimPrefix(h.Name, "./"))
	if !fs.ValidPath(name) || len(name) > 1024 {
		return api.BadRequest("the kernel archive has an impossible member %.200q", h.Name)
	}
	below, isModules := strings.CutPrefix(name+"/", memberModules)
	below = strings.TrimSuffix(below, "/")
	regular := h.Typeflag == tar.TypeReg
	switch {
	case name == memberKernel && regular && !im.haveKernel:
		im.haveKernel = true
		return im.stage(stagedImage, h.Size, r)
	case h.Typeflag == tar.TypeDir && (isModules || name == "."):
		return nil
	case !isModules || name == dirModules:
		return api.BadRequest("the kernel archive has an unexpected member %.200q", h.Name).
			WithHint("it may hold one regular file named kernel and files below modules/")
	case !regular:
		return nil // the links build and source of a modules tree
	case below == fileDep:
		im.haveDep = true
		return im.list(&im.dep, h, r)
	case below == fileBuiltin:
		return im.list(&im.builtin, h, r)
	case isModuleFile(below) && h.Size <= maxModule:
		if im.staged[below] != "" {
			return api.BadRequest("the kernel archive holds %.200q twice", h.Name)
		}
		file := fmt.Sprintf("%s/%d", dirStaging, len(im.staged))
		im.staged[below] = file
		return im.stage(file, h.Size, r)
	}
	return nil // modules.alias and the like
}

func (im *importer) list(to *[]byte, h *tar.Header, r io.Reader) error {
	if h.Size > maxDepFile {
		return api.BadRequest("the kernel archive's %s is too large", h.Name)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return im.badArchive(err)
	}
	*to = data
	return nil
}

func (im *importer) stage(name string, size int64, r io.Reader) error {
	if size > maxELF {
		return api.BadRequest("the kernel archive has a member of more than %d MiB", maxELF>>20)
	}
	f, err := im.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot import kernel: %w", err)
	}
	defer f.Close() // the second time, if all went well
	if _, err := io.Copy(f, r); err != nil {
		if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) { // f's own
			return fmt.Errorf("cannot import kernel: %w", err)
		}
		return im.badArchive(err)
	}
	return f.Close()
}

// badArchive blames the archive, unless the caller gave up or the transport
// failed.
func (im *importer) badArchive(err error) error {
	if im.ctx.Err() != nil {
		return fmt.Errorf("cannot import kernel: %w", im.ctx.Err())
	}
	if failed := (*transportError)(nil); errors.As(err, &failed) {
		return fmt.Errorf("cannot import kernel: %w", err)
	}
	return api.BadRequest("the kernel archive is damaged or truncated: %v", err).
		WithHint("it must be an uncompressed tar with a member named kernel, as banger kernel import makes it")
}

// contextReader makes reading end with the context, and marks what its reader
// itself failed with.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

type transportError struct{ error }

func (e *transportError) Unwrap() error { return e.error }

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &transportError{err}
	}
	return n, err
}

// contextWriter does the same for writing.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c contextWriter) Write(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(b)
}
