package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// step is how much is copied before a look at the context.
const step = 16 << 20

// Copy makes a new file with the content of another: one that shares its blocks
// where the filesystem can do that (btrfs, XFS), otherwise a copy of what is
// data, with the holes left out. The new file appears when it is complete and on
// the disk; one that is there already is an error that is fs.ErrExist.
//
// Nobody must write to the source meanwhile, or the copy is of no one moment.
// What a VM wrote is in the file only after a sync of its device.
func Copy(ctx context.Context, to, from string) error {
	src, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("cannot copy disk: %w", err)
	}
	defer src.Close() // only read
	info, err := src.Stat()
	if err != nil {
		return fmt.Errorf("cannot copy disk: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("cannot copy disk: %s is no regular file", from)
	}
	err = appear(to, func(dst *os.File) error {
		if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
			return nil
		}
		if err := dst.Truncate(info.Size()); err != nil {
			return err
		}
		return copyData(ctx, dst, src, info.Size())
	})
	if err != nil {
		return failed("copy disk to", to, err)
	}
	return nil
}

func copyData(ctx context.Context, dst, src *os.File, size int64) error {
	for at := int64(0); at < size; {
		start, err := src.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // the rest is a hole
		}
		if err != nil {
			return err
		}
		if at, err = src.Seek(start, unix.SEEK_HOLE); err != nil {
			return err
		}
		at = min(at, size)
		if err := copyRange(ctx, dst, src, start, at); err != nil {
			return err
		}
	}
	return nil
}

func copyRange(ctx context.Context, dst, src *os.File, start, end int64) error {
	if _, err := src.Seek(start, io.SeekStart); err != nil {
		return err
	}
	if _, err := dst.Seek(start, io.SeekStart); err != nil {
		return err
	}
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.CopyN(dst, src, min(step, end-start)) // in the kernel, by copy_file_range
		if err != nil {
			return err
		}
		start += n
	}
	return nil
}
