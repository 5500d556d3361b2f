package daemon

import (
	"context"
	"io"

	"banger/api"
)

type importInput struct{ Body api.ImportSpec }

func (d *Daemon) listImages(ctx context.Context, _ *struct{}) ([]api.Image, error) {
	return d.images.List(ctx)
}

func (d *Daemon) importImage(ctx context.Context, in *importInput) (api.Operation, error) {
	return d.beginImport(ctx, "image.import", in.Body, func(ctx context.Context, r io.Reader, progress func(int64)) error {
		return d.images.Import(ctx, in.Body.Name, r, progress)
	})
}

func (d *Daemon) deleteImage(ctx context.Context, in *nameInput) (none, error) {
	return none{}, d.images.Delete(ctx, in.Name)
}

func (d *Daemon) listKernels(ctx context.Context, _ *struct{}) ([]api.Kernel, error) {
	return d.kernels.List(ctx)
}

func (d *Daemon) importKernel(ctx context.Context, in *importInput) (api.Operation, error) {
	return d.beginImport(ctx, "kernel.import", in.Body, func(ctx context.Context, r io.Reader, _ func(int64)) error {
		return d.kernels.Import(ctx, in.Body.Name, r)
	})
}

func (d *Daemon) deleteKernel(ctx context.Context, in *nameInput) (none, error) {
	return none{}, d.kernels.Delete(ctx, in.Name)
}

// beginImport begins an operation that imports what PUT …/input will bring.
func (d *Daemon) beginImport(ctx context.Context, kind string, spec api.ImportSpec,
	load func(context.Context, io.Reader, func(int64)) error) (api.Operation, error) {
	op, err := d.ops.begin(ctx, kind, spec.Name, true, func(ctx context.Context, op *operation) error {
		op.Stage("receive", "waiting for the data")
		r, release, err := op.awaitInput(ctx)
		if err != nil {
			return err
		}
		defer release()
		op.Stage("import", "importing")
		op.bytes(0, spec.Bytes)
		return load(ctx, ctxReader{ctx, r}, func(done int64) { op.bytes(done, spec.Bytes) })
	})
	if err != nil {
		return api.Operation{}, err
	}
	s, _ := op.snapshot()
	return s, nil
}

// ctxReader ends with its context, at the next read.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
