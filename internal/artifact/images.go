package artifact

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"banger/api"
	"banger/internal/image"
	"banger/internal/store"
)

// Images keeps the images of an installation.
type Images struct {
	store       *store.Store
	shelf       shelf
	virtualSize int64
}

// OpenImages returns those in dir, swept of what unfinished imports left.
// virtualSize is that of new images, in bytes.
func OpenImages(ctx context.Context, s *store.Store, dir string, virtualSize, reserve int64, log *slog.Logger) (*Images, error) {
	c := &Images{store: s, shelf: shelf{Dir: dir, Kind: "image", Reserve: reserve}, virtualSize: virtualSize}
	images, err := s.Images(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, i := range images {
		known[i.ID] = true
	}
	return c, c.shelf.Sweep(ctx, log, known)
}

// Import makes an image of the tar in r. progress is told how many bytes of r
// were read. After an error nothing is left.
func (c *Images) Import(ctx context.Context, name string, r io.Reader, progress func(int64)) error {
	var info image.Info
	return c.shelf.Import(ctx, name,
		func() error { _, err := c.store.Image(ctx, name); return err },
		func(ctx context.Context, dir string) (err error) {
			info, err = image.Import(ctx, r, dir, image.Options{VirtualSize: c.virtualSize, Progress: progress})
			return err
		},
		func(ctx context.Context, id string) error {
			return c.store.InsertImage(ctx, &store.Image{ID: id, Name: name, Size: info.Size,
				DiskBytes: info.DiskBytes, Files: info.Files, ImportedAt: time.Now().UTC()})
		})
}

// Delete removes an image that no VM is made from.
func (c *Images) Delete(ctx context.Context, name string) error {
	i, err := c.store.Image(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return c.shelf.Missing(name)
	} else if err != nil {
		return err
	}
	return c.shelf.Delete(name, i.ID, i.UsedBy, func() error { return c.store.DeleteImage(ctx, i.ID) })
}

// List returns all images by name.
func (c *Images) List(ctx context.Context) ([]api.Image, error) {
	is, err := c.store.Images(ctx)
	out := make([]api.Image, len(is))
	for n, i := range is {
		out[n] = api.Image{Name: i.Name, Size: i.Size, DiskBytes: i.DiskBytes, Files: i.Files,
			ImportedAt: i.ImportedAt, UsedBy: i.UsedBy}
	}
	return out, err
}
