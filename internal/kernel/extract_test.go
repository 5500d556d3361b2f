package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"banger/api"
)

func extractBytes(b []byte) ([]byte, error) {
	var out bytes.Buffer
	err := Extract(bytes.NewReader(b), int64(len(b)), &out)
	return out.Bytes(), err
}

func TestExtract(t *testing.T) {
	elf := fakeELF()
	// Made by: xz --check=crc32 --x86 --lzma2=dict=1MiB of fakeELF().
	bcj, err := os.ReadFile("testdata/x86-bcj.xz")
	if err != nil {
		t.Fatal(err)
	}
	images := map[string][]byte{
		"elf":            elf,
		"bzImage xz bcj": bzImage(withSize(bcj, len(elf))),
	}
	for name, compress := range compressors {
		images["bzImage "+name] = bzImage(compress(t, elf))
	}
	// setup_sects 0 stands for 4: one sector more than bzImage makes.
	old := bytes.Clone(images["bzImage gzip"])
	old[offSetupSects] = 0
	old = slices.Insert(old, 4*sectorSize, make([]byte, sectorSize)...)
	images["bzImage without sectors"] = old

	for name, image := range images {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			got, err := extract(bytes.NewReader(image), int64(len(image)), &out)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), elf) {
				t.Errorf("the kernel came out changed: %d bytes, want %d", out.Len(), len(elf))
			}
			if got.release != testRelease || got.end != 40<<20 || got.size != int64(len(elf)) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestExtractRefuses(t *testing.T) {
	elf := fakeELF()
	edit := func(off int, val ...byte) []byte {
		b := bytes.Clone(elf)
		copy(b[off:], val)
		return b
	}
	bomb := bytes.Repeat([]byte{0}, 64<<20)
	gz := compressors["gzip"](t, elf)
	wrong := bytes.Clone(gz)
	binary.LittleEndian.PutUint32(wrong[len(wrong)-4:], 77)
	lying := compressors["zstd"](t, elf)
	binary.LittleEndian.PutUint32(lying[len(lying)-4:], uint32(len(elf)+1))
	old := bzImage(gz)
	old[offVersion], old[offVersion+1] = 7, 2
	for name, tc := range map[string]struct {
		image []byte
		want  string
	}{
		"empty":             {nil, "empty"},
		"text":              {[]byte("#!/bin/sh\necho hello\n"), "neither ELF nor bzImage"},
		"gzip file":         {gz, "compressed with gzip"},
		"arm64 image":       {append(make([]byte, 0x38), "ARMd0000"...), "arm64"},
		"arm64 elf":         {edit(18, 183), "not for x86-64"},
		"32 bit elf":        {edit(4, 1), "not for x86-64"},
		"shared object":     {edit(16, 3), "no kernel"},
		"program":           {edit(64, elfInterp), "is a program"},
		"entry outside":     {edit(24, 1, 2, 3, 0), "entry point"},
		"no segments":       {edit(56, 0), "program headers"},
		"far headers":       {edit(32, 0, 0, 0, 0, 1), "program headers"},
		"huge segment":      {edit(64+40, 0, 0, 0, 0, 0, 0, 0, 0x80), "impossible addresses"},
		"low segment":       {edit(64+24, 0, 0, 0, 0), "impossible addresses"},
		"overflow":          {edit(64+8, 255, 255, 255, 255, 255, 255, 255, 127), "truncated"},
		"old protocol":      {old, "older than"},
		"bad gzip size":     {bzImage(wrong), "damaged"},
		"wrong size":        {bzImage(lying), "were announced"},
		"bomb":              {bzImage(compressors["zstd"](t, bomb)), "no ELF"},
		"unknown payload":   {bzImage(withSize(bytes.Repeat([]byte("x"), 5000), 9000)), "unknown way"},
		"lzo payload":       {bzImage(withSize([]byte("\x89LZO\x00 and more of it"), 9000)), "lzo"},
		"truncated payload": {bzImage(gz)[:4000], "truncated bzImage"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := extractBytes(tc.image)
			var p *api.Problem
			if !errors.As(err, &p) || !strings.Contains(p.Detail, tc.want) {
				t.Fatalf("got %v, want a problem with %q", err, tc.want)
			}
			if p.Hint == "" {
				t.Error("the problem has no hint")
			}
		})
	}
}

// Whatever is cut off, it is never taken for a kernel.
func TestExtractTruncated(t *testing.T) {
	elf := fakeELF()
	images := map[string][]byte{"elf": elf}
	for name, compress := range compressors {
		b := bzImage(compress(t, elf))
		images[name] = b[:len(b)-64] // without what follows the payload
	}
	for name, image := range images {
		for _, cut := range []int{1, 2, 4, 5, 9, 100, len(image) / 2, len(image) - 600, len(image) - 20} {
			if _, err := extractBytes(image[:len(image)-cut]); err == nil {
				t.Errorf("%s without its last %d bytes was accepted", name, cut)
			}
		}
	}
}

// The same cut, but with a header that knows of it.
func TestExtractTruncatedPayload(t *testing.T) {
	elf := fakeELF()
	for name, compress := range compressors {
		whole := compress(t, elf)
		for _, cut := range []int{5, 50, len(whole) / 2} {
			part := whole[:len(whole)-cut]
			if name != "gzip" {
				part = withSize(part, len(elf))
			}
			if _, err := extractBytes(bzImage(part)); err == nil {
				t.Errorf("a %s payload without %d bytes was accepted", name, cut)
			}
		}
	}
}

func TestReleaseAcrossWrites(t *testing.T) {
	data := append(bytes.Repeat([]byte("x"), 300), "Linux version 6.12.1 (a)"...)
	for step := range 40 {
		p := newProbe()
		for rest := data; len(rest) > 0; {
			n := min(step+1, len(rest))
			p.scan(rest[:n])
			rest = rest[n:]
		}
		if p.release != "6.12.1" {
			t.Errorf("in steps of %d: got %q", step+1, p.release)
		}
	}
}

func FuzzExtract(f *testing.F) {
	elf := fakeELF()[:8192]
	f.Add(elf)
	for _, compress := range compressors {
		f.Add(bzImage(compress(f, elf)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := extractBytes(b)
		if err == nil && !isELF(out) {
			t.Error("accepted what is no ELF file")
		}
	})
}
