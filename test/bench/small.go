package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/paths"
)

// importSmall imports an image of busybox and this program. It has no init, so the agent is
// all that runs in it: what is measured with it is not a distribution's boot.
func (b *bench) importSmall(ctx context.Context) error {
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		return fmt.Errorf("the host has busybox-static for this: %w", err)
	}
	sink, err := self()
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(h tar.Header, content string) {
		h.Size = int64(len(content))
		err = errors.Join(err, w.WriteHeader(&h))
		_, writeErr := w.Write([]byte(content))
		err = errors.Join(err, writeErr)
	}
	for _, dir := range []string{"bin/", "etc/", "root/", "tmp/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, "")
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, string(busybox))
	add(tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(sinkProgram, "/"), Mode: 0o755}, string(sink))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, "root:x:0:0::/root:/bin/sh\n")
	for applet := range strings.FieldsSeq("sh true echo cat sync sleep") {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, "")
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	// The owner's, who imports it, and on the filesystem that images lie on.
	file := filepath.Join(paths.StateDir, ".bench-small.tar")
	err = errors.Join(os.WriteFile(file, archive.Bytes(), 0o600), os.Chown(file, b.record.UID, b.record.GID))
	if err == nil {
		_, err = b.banger(ctx, "image", "import", smallImage, file)
	}
	return errors.Join(err, os.Remove(file))
}
