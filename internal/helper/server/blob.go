package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
)

// Limits of the blob store, which holds kernels and initrds.
const (
	maxBlob      = 1 << 30
	maxBlobs     = 16 << 30
	maxBlobCount = 4096
)

// putBlob copies a file of the owner to a root-owned one and names the copy
// by its content. What is hashed is the copy: the owner may go on writing to
// his file, and only bytes he can no longer change may get the name.
func (s *Server) putBlob(ctx context.Context, r helper.BlobPutRequest) (helper.Blob, error) {
	src, st, err := s.ownerFile(r.Path, unix.O_RDONLY)
	if err != nil {
		return helper.Blob{}, err
	}
	defer src.Close()
	if st.Size > maxBlob {
		return helper.Blob{}, api.BadRequest("%.200q has %d bytes; the limit is %d", r.Path, st.Size, maxBlob)
	}
	select { // one at a time, so that the quota cannot be passed by two at once
	case s.blobTurn <- struct{}{}:
		defer func() { <-s.blobTurn }()
	case <-ctx.Done():
		return helper.Blob{}, ctx.Err()
	}
	count, used, err := s.blobsUsed()
	if err != nil {
		return helper.Blob{}, err
	}
	if used+st.Size > maxBlobs || count >= maxBlobCount {
		return helper.Blob{}, api.Problemf(http.StatusInsufficientStorage, api.CodeNoSpace,
			"blob store is full: %d of %d bytes, %d of %d files", used, int64(maxBlobs), count, maxBlobCount).WithHint("delete kernels that are not needed")
	}
	blob, err := s.storeBlob(src, st.Size)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return helper.Blob{}, api.Problemf(http.StatusInsufficientStorage, api.CodeNoSpace, "cannot store %.200q: %v", r.Path, err)
	}
	if err != nil {
		return helper.Blob{}, fmt.Errorf("cannot store %.200q: %w", r.Path, err)
	}
	return blob, nil
}

func (s *Server) blobsUsed() (count int, sum int64, err error) {
	entries, err := os.ReadDir(s.places.Blobs)
	if err != nil {
		return 0, 0, fmt.Errorf("cannot read blob store: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return 0, 0, fmt.Errorf("cannot read blob store: %w", err)
		}
		sum += info.Size()
	}
	return len(entries), sum, nil
}

// storeBlob works on a file without a name until it is complete, so an
// interrupted copy leaves nothing. The file may have become longer than the size
// that there is room for.
func (s *Server) storeBlob(src *os.File, most int64) (helper.Blob, error) {
	copied, err := os.OpenFile(s.places.Blobs, unix.O_TMPFILE|os.O_RDWR, 0o400)
	if err != nil {
		return helper.Blob{}, err
	}
	defer copied.Close()
	size, err := copyAll(copied, src, most)
	if err != nil {
		return helper.Blob{}, err
	}
	if size > most {
		return helper.Blob{}, api.BadRequest("it grew beyond %d bytes while it was copied", most)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(copied, 0, size)); err != nil {
		return helper.Blob{}, err
	}
	blob := helper.Blob{SHA256: hex.EncodeToString(sum.Sum(nil)), Size: size}
	if err := copied.Chmod(0o444); err != nil {
		return helper.Blob{}, err
	}
	if err := copied.Sync(); err != nil {
		return helper.Blob{}, err
	}
	// A file is linked by its descriptor; through /proc, since AT_EMPTY_PATH
	// would need CAP_DAC_READ_SEARCH.
	err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(copied.Fd())),
		unix.AT_FDCWD, filepath.Join(s.places.Blobs, blob.SHA256), unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.EEXIST) { // it was here already
		return blob, nil
	}
	if err != nil {
		return helper.Blob{}, err
	}
	return blob, syncDir(s.places.Blobs)
}

// copyAll shares the blocks where the filesystem can, and copies otherwise. It
// stops one byte after the limit, however long the source has become.
func copyAll(dst, src *os.File, most int64) (int64, error) {
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err == nil {
		info, err := dst.Stat()
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	}
	return io.Copy(dst, io.LimitReader(src, most+1))
}
