package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"banger/api"
	"banger/internal/kernel/decompress"
)

// source is the way of an archive's bytes: counted, decompressed, and with a
// memory of why it ended, since archive/tar tells neither a cut archive from a
// whole one nor a lost connection from a damaged file.
type source struct {
	ctx      context.Context
	r        io.Reader
	read     int64
	progress func(int64)
	failed   atomic.Pointer[error] // what r itself failed with; decoders read in goroutines

	decoder io.Closer
	ahead   *aheadReader // nil where the decoder is fast or reads ahead itself
	plain   io.Reader
	ended   bool // plain has ended
}

// maxTrailer bounds what may follow the archive's end mark: padding.
const maxTrailer = 64 << 20

// rawReader is the source's near end: r as it comes.
type rawReader struct{ *source }

func (s rawReader) Read(b []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		s.failed.Store(&err)
		return 0, err
	}
	n, err := s.r.Read(b)
	s.read += int64(n)
	if s.progress != nil && n > 0 {
		s.progress(s.read)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.failed.Store(&err)
	}
	return n, err
}

// Read returns the uncompressed archive.
func (s *source) Read(b []byte) (int, error) {
	n, err := s.plain.Read(b)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	if n > 0 {
		return n, nil // the last bytes are not yet the end
	}
	s.ended = true
	return 0, io.EOF
}

// openSource finds out how r is compressed.
func openSource(ctx context.Context, r io.Reader, progress func(int64)) (*source, error) {
	s := &source{ctx: ctx, r: r, progress: progress}
	buf := bufio.NewReaderSize(rawReader{s}, 256<<10)
	head, err := buf.Peek(512)
	if failed := s.failed.Load(); failed != nil {
		return nil, s.blame(*failed)
	}
	if len(head) == 0 {
		return nil, api.BadRequest("the archive is empty").
			WithHint("give the tar of a root filesystem")
	}
	format := decompress.Detect(head)
	if len(head) == 512 && string(head[257:262]) == "ustar" {
		format = decompress.None // the first member's name only looks like a magic number
	}
	if format == decompress.None && err != nil {
		return nil, noTar()
	}
	switch format {
	case decompress.None, decompress.Gzip, decompress.XZ, decompress.Zstd:
	default:
		return nil, api.BadRequest("the archive is compressed with %s, which is not supported", format).
			WithHint("compress it with gzip, xz or zstd, or not at all")
	}
	z, err := decompress.NewReader(format, buf)
	if err != nil {
		return nil, s.blame(err)
	}
	s.decoder, s.plain = z, z
	if format == decompress.Gzip || format == decompress.XZ {
		s.ahead = readAhead(z)
		s.plain = s.ahead
	}
	return s, nil
}

func noTar() error {
	return api.BadRequest("the file is no tar archive").
		WithHint("give the tar of a root filesystem, plain or compressed with gzip, xz or zstd")
}

// blame says whose fault a failed read of the archive is: the caller's who gave
// up, the transport's, or the archive's.
func (s *source) blame(err error) error {
	switch {
	case s.ctx.Err() != nil:
		return fmt.Errorf("cannot import image: %w", s.ctx.Err())
	case s.failed.Load() != nil:
		return fmt.Errorf("cannot import image: cannot read the archive: %w", *s.failed.Load())
	}
	return api.BadRequest("the archive is damaged or truncated: %v", err).
		WithHint("if it was downloaded, compare its checksum; if it comes through a pipe, look for errors of the sender")
}

// finish reads what follows the archive's end mark, so that a compressed
// stream's checksum is verified and its end is known to be there.
func (s *source) finish() error {
	if s.ended {
		return s.blame(errors.New("its end mark is missing"))
	}
	n, err := io.Copy(io.Discard, io.LimitReader(s, maxTrailer))
	if err != nil {
		return s.blame(err)
	}
	if n == maxTrailer {
		return api.BadRequest("the archive goes on behind its end mark")
	}
	return nil
}

// close ends all reading of the archive.
func (s *source) close() error {
	if s.ahead != nil {
		s.ahead.close()
	}
	return s.decoder.Close()
}
