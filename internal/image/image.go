// Package image turns the tar of a root filesystem into an ext4 image, as an
// ordinary user.
//
// An archive is hostile until proven otherwise, and it asks for what an
// ordinary user cannot do: other owners, devices, setuid bits, capabilities.
// So only names and contents go to disk, into a staging tree that mke2fs
// reads; everything else is kept in memory and written into the image by a
// debugfs script. Symbolic links are put into the staging tree last: while
// files are written there is none that a member's name could go through.
// Names are resolved in memory as they would be in a chroot.
//
// The image has a large virtual size in a sparse file. Nothing that a guest
// wrote is ever read here.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/api"
)

// File is the name of the image in its directory.
const File = "rootfs.ext4"

const (
	// staging is where all that an import needs only meanwhile lies.
	staging     = ".staging"
	defaultSize = 32 << 30
	// largestSize is where ext4 with these features and 4 KiB blocks ends.
	largestSize = 16 << 40
)

// Options of an import; the zero value is good.
type Options struct {
	// VirtualSize of the filesystem in bytes; 0 means 32 GiB. It becomes larger
	// if the content asks for it.
	VirtualSize int64
	// Progress, if set, is told how many bytes of the input have been read. It
	// is called from one goroutine at a time, and not after Import's return.
	Progress func(bytesRead int64)
}

// Info is what is known of an imported image.
type Info struct {
	// Size is virtual, DiskBytes is what the image takes.
	Size, DiskBytes int64
	// Files counts names: files, directories, links, devices.
	Files int
}

// Import reads the tar of a root filesystem (plain or compressed with gzip, xz
// or zstd) and makes the image File in dir, an existing empty directory. The
// image is on disk when it returns; after an error or a cancelled context dir
// is empty again. An *api.Problem says that the archive or the space is at
// fault.
func Import(ctx context.Context, r io.Reader, dir string, o Options) (info Info, err error) {
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return Info{}, errors.Join(fmt.Errorf("cannot import image: %s is no empty directory", dir), err)
	}
	tools, err := findTools()
	if err != nil {
		return Info{}, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return Info{}, fmt.Errorf("cannot import image: %w", err)
	}
	stage := filepath.Join(dir, staging)
	defer func() {
		if rmErr := os.RemoveAll(stage); rmErr != nil {
			err = errors.Join(err, rmErr)
		}
		if err == nil {
			return
		}
		err = problem(err)
		if rmErr := os.Remove(filepath.Join(dir, File)); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}()
	for _, d := range []string{stage, filepath.Join(stage, stagedTree), filepath.Join(stage, stagedValues)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return Info{}, fmt.Errorf("cannot import image: %w", err)
		}
	}
	t, err := extract(ctx, r, filepath.Join(stage, stagedTree), o.Progress)
	if err != nil {
		return Info{}, err
	}
	b := builder{tools: tools, stage: stage, image: filepath.Join(dir, File), tree: t}
	return b.build(ctx, o.VirtualSize)
}

// problem gives a full disk its own code.
func problem(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return api.Problemf(507, api.CodeNoSpace, "cannot import image: no space is left in banger's state directory").
		WithHint("an import needs twice the size of the unpacked image for a moment; free some space, e.g. by deleting images or VMs that are not used")
}
