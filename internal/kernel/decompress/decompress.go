// Package decompress names the compression of a stream by its first bytes and
// undoes it. It serves images and kernels alike, and its input is hostile:
// what a decoder may hold in memory is bounded here, how much it may put out
// is for the caller to bound.
package decompress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
)

// Format is a way data may be compressed; its value is its name for a person.
type Format string

// The formats Detect tells apart. Those after LZ4Legacy are only recognised,
// so that a message can name them.
const (
	None      Format = "none"
	Gzip      Format = "gzip"
	XZ        Format = "xz"
	Zstd      Format = "zstd"
	LZ4Legacy Format = "lz4 (legacy frame)"
	LZ4       Format = "lz4"
	Bzip2     Format = "bzip2"
	LZMA      Format = "lzma"
	LZO       Format = "lzo"
)

// MagicSize is how many first bytes Detect wants to see; fewer are allowed.
const MagicSize = 6

// maxWindow bounds a decoder's dictionary: what zstd itself takes without
// being told more, and twice of what xz -9 needs.
const maxWindow = 128 << 20

var magics = []struct {
	format Format
	magic  string
}{
	{Gzip, "\x1f\x8b"},
	{XZ, "\xfd7zXZ\x00"},
	{Zstd, "\x28\xb5\x2f\xfd"},
	{LZ4Legacy, "\x02\x21\x4c\x18"},
	{LZ4, "\x04\x22\x4d\x18"},
	{Bzip2, "BZh"},
	{LZMA, "\x5d\x00\x00"},
	{LZO, "\x89LZO\x00"},
}

// Detect names the format of data that begins with head.
func Detect(head []byte) Format {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.format
		}
	}
	return None
}

// NewReader returns what r holds, decompressed. It reads ahead of what it
// returns. Streams that were put one behind the other are read as one. Close
// frees the decoder and leaves r alone.
func NewReader(f Format, r io.Reader) (io.ReadCloser, error) {
	if _, ok := r.(io.ByteReader); !ok {
		r = bufio.NewReaderSize(r, 256<<10)
	}
	switch f {
	case None:
		return io.NopCloser(r), nil
	case Gzip:
		return gzip.NewReader(r)
	case XZ:
		z, err := xz.NewReader(r, maxWindow)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(z), nil
	case Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case LZ4Legacy:
		return io.NopCloser(lz4.NewReader(r)), nil
	default:
		return nil, fmt.Errorf("%s is not supported", f)
	}
}
