package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
)

// gcBlobs removes blobs nobody wants. One that is linked into a jail stays: its
// VM may be started again by a bangerd that knows it.
func (s *Server) gcBlobs(ctx context.Context, r helper.BlobGCRequest) (helper.Empty, error) {
	if r.Keep == nil { // an empty request must not mean "remove all"
		return helper.Empty{}, api.BadRequest("keep is missing")
	}
	for _, sum := range r.Keep {
		if !isSHA256(sum) {
			return helper.Empty{}, api.BadRequest("%.80q is not a sha256", sum)
		}
	}
	select {
	case s.blobTurn <- struct{}{}:
		defer func() { <-s.blobTurn }()
	case <-ctx.Done():
		return helper.Empty{}, ctx.Err()
	}
	entries, err := os.ReadDir(s.places.Blobs)
	if err != nil {
		return helper.Empty{}, fmt.Errorf("cannot read blob store: %w", err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		path := filepath.Join(s.places.Blobs, e.Name())
		if err := unix.Lstat(path, &st); err != nil {
			return helper.Empty{}, fmt.Errorf("cannot read blob store: %w", err)
		}
		if st.Nlink > 1 || slices.Contains(r.Keep, e.Name()) || !isSHA256(e.Name()) {
			continue
		}
		if err := os.Remove(path); err != nil {
			return helper.Empty{}, fmt.Errorf("cannot remove blob: %w", err)
		}
	}
	return helper.Empty{}, nil
}
