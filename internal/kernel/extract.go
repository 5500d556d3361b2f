package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"banger/internal/kernel/decompress"
)

// Fields of a bzImage, as the kernel's boot protocol has them.
const (
	setupHeaderEnd = 0x250
	offSetupSects  = 0x1f1
	offBootFlag    = 0x1fe
	offMagic       = 0x202
	offVersion     = 0x206
	offVersionText = 0x20e
	offPayload     = 0x248
	offPayloadLen  = 0x24c
	sectorSize     = 512
	// The payload's place is told since this version of the protocol (2.6.26).
	payloadSince = 0x0208
)

// Extract writes the uncompressed ELF kernel that src holds to dst: src as it
// is when it is one already, else the payload of the bzImage. What it wrote is
// of use only when it returns nil. Errors are *api.Problem when src is at
// fault.
func Extract(src io.ReaderAt, size int64, dst io.Writer) error {
	_, err := extract(src, size, dst)
	return err
}

// extracted is what became known on the way.
type extracted struct {
	release string
	sha256  string
	size    int64
	end     int64
}

func extract(src io.ReaderAt, size int64, dst io.Writer) (extracted, error) {
	head := make([]byte, min(size, setupHeaderEnd))
	if _, err := src.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return extracted{}, fmt.Errorf("cannot read kernel: %w", err)
	}
	p := newProbe()
	var release string
	switch {
	case isELF(head):
		if size > maxELF {
			return extracted{}, badKernel(errTooLarge)
		}
		if err := copyChecked(dst, p, io.NewSectionReader(src, 0, size)); err != nil {
			return extracted{}, err
		}
	case isBzImage(head):
		release = headerRelease(src, head)
		if err := unpack(src, size, head, dst, p); err != nil {
			return extracted{}, err
		}
	default:
		return extracted{}, badKernel(noKernel(head))
	}
	end, err := p.end()
	if err != nil {
		return extracted{}, badKernel(err)
	}
	if release == "" {
		release = p.release
	}
	return extracted{release: release, sha256: p.sum(), size: p.size, end: end}, nil
}

// noKernel says what the file is, as far as its head tells.
func noKernel(head []byte) error {
	switch f := decompress.Detect(head); {
	case len(head) == 0:
		return errors.New("it is empty")
	case len(head) >= 0x3c && string(head[0x38:0x3c]) == "ARMd":
		return errors.New("it is a kernel for arm64")
	case f != decompress.None:
		return fmt.Errorf("it is no kernel but a file compressed with %s", f)
	default:
		return errors.New("it is no kernel: neither ELF nor bzImage")
	}
}

func isBzImage(head []byte) bool {
	return len(head) == setupHeaderEnd &&
		head[offBootFlag] == 0x55 && head[offBootFlag+1] == 0xaa &&
		string(head[offMagic:offMagic+4]) == "HdrS"
}

func setupSize(head []byte) int64 {
	n := int64(head[offSetupSects])
	if n == 0 {
		n = 4 // "for backwards compatibility", says the boot protocol
	}
	return (n + 1) * sectorSize
}

// headerRelease reads the version text the header points to, or returns "".
func headerRelease(src io.ReaderAt, head []byte) string {
	at := int64(binary.LittleEndian.Uint16(head[offVersionText:]))
	if at == 0 || at+sectorSize >= setupSize(head) {
		return ""
	}
	text := make([]byte, 128)
	n, err := src.ReadAt(text, at+sectorSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	text, _, _ = bytes.Cut(text[:n], []byte{0})
	word, _, _ := bytes.Cut(text, []byte{' '})
	if !validRelease(string(word)) {
		return ""
	}
	return string(word)
}

// unpack decompresses the payload of a bzImage. The payload's last four bytes
// are the unpacked size, either put there by the kernel's build or as the end
// of gzip's own trailer.
func unpack(src io.ReaderAt, size int64, head []byte, dst io.Writer, p *probe) error {
	if binary.LittleEndian.Uint16(head[offVersion:]) < payloadSince {
		return badKernel(errors.New("it is a bzImage of a kernel older than 2.6.26"))
	}
	start := setupSize(head) + int64(binary.LittleEndian.Uint32(head[offPayload:]))
	length := int64(binary.LittleEndian.Uint32(head[offPayloadLen:]))
	if length < decompress.MagicSize+4 || start+length > size {
		return badKernel(errors.New("it is a truncated bzImage"))
	}
	magic, trailer := make([]byte, decompress.MagicSize), make([]byte, 4)
	if _, err := src.ReadAt(magic, start); err != nil {
		return fmt.Errorf("cannot read kernel: %w", err)
	}
	if _, err := src.ReadAt(trailer, start+length-4); err != nil {
		return fmt.Errorf("cannot read kernel: %w", err)
	}
	want := int64(binary.LittleEndian.Uint32(trailer))
	if want > maxELF {
		return badKernel(errTooLarge)
	}
	format := decompress.Detect(magic)
	if format == decompress.None && !isELF(magic) {
		return badKernel(errors.New("its payload is compressed in an unknown way"))
	}
	if format != decompress.Gzip {
		length -= 4
	}
	r, err := decompress.NewReader(format, io.NewSectionReader(src, start, length))
	if err != nil {
		return badKernel(fmt.Errorf("its payload cannot be unpacked: %w", err))
	}
	defer r.Close() // a decoder's Close has nothing to say
	if err := copyChecked(dst, p, r); err != nil {
		return err
	}
	if p.size != want {
		return badKernel(fmt.Errorf("it unpacks to %d bytes where %d were announced", p.size, want))
	}
	return nil
}

// copyChecked tells apart whose fault a failure is: dst's is ours, src's and
// the probe's the kernel's.
func copyChecked(dst io.Writer, p *probe, src io.Reader) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := src.Read(buf)
		if _, perr := p.Write(buf[:n]); perr != nil {
			return badKernel(perr)
		}
		if _, werr := dst.Write(buf[:n]); werr != nil {
			return fmt.Errorf("cannot write kernel: %w", werr)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return badKernel(fmt.Errorf("it is damaged or truncated: %w", err))
		}
	}
}
