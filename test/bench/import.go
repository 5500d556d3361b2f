package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"banger/internal/paths"
)

// imports compares `banger image import` with what its work costs at least:
// unpacking the archive and making a filesystem of the files. The input is
// part of this host's own /usr.
func (b *bench) imports(ctx context.Context) (rows []row, err error) {
	dir := filepath.Join(paths.HelperDir, "bench-import") // the filesystem that images lie on
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	in := filepath.Join(dir, "in.tar")
	if err := run(ctx, "tar", "-cf", in, "-C", "/", "usr/bin", "usr/sbin", "usr/share", "usr/lib/x86_64-linux-gnu"); err != nil {
		return nil, err
	}
	st, err := os.Stat(in)
	if err != nil {
		return nil, err
	}
	var ours, floor []time.Duration
	for i := range b.runs {
		d, err := unpackAndMake(ctx, in, filepath.Join(dir, "floor"))
		if err != nil {
			return nil, err
		}
		floor = append(floor, d)
		name := fmt.Sprintf("bench-%d", i)
		if d, err = b.timed(ctx, "image", "import", name, in); err != nil {
			return nil, err
		}
		ours = append(ours, d)
		if _, err := b.banger(ctx, "image", "delete", name); err != nil {
			return nil, err
		}
	}
	speed := func(ds []time.Duration) float64 { return float64(st.Size()) / (1 << 20) / (median(ds) / 1000) }
	return []row{{What: fmt.Sprintf("image import, %d MiB (floor: tar x, mke2fs -d)", st.Size()>>20), Unit: "MiB/s",
		Value: speed(ours), Floor: speed(floor), Limit: 0.7, AtLeast: true}}, nil
}

func unpackAndMake(ctx context.Context, in, dir string) (time.Duration, error) {
	root, disk := filepath.Join(dir, "root"), filepath.Join(dir, "disk")
	defer os.RemoveAll(dir)
	begun := time.Now()
	if err := os.MkdirAll(root, 0o755); err != nil {
		return 0, err
	}
	if err := run(ctx, "tar", "-xf", in, "-C", root); err != nil {
		return 0, err
	}
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 32<<30)); err != nil {
		return 0, err
	}
	err := run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-E", "assume_storage_prezeroed=1", "-d", root, disk)
	return time.Since(begun), err
}

func run(ctx context.Context, argv ...string) error {
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", argv, err, out)
	}
	return nil
}
