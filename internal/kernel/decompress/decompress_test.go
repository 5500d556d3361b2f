package decompress

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// forms are the same text in every form that can be read.
func forms(t testing.TB, text string) map[Format][]byte {
	t.Helper()
	out := map[Format][]byte{}
	for f, open := range map[Format]func(io.Writer) (io.WriteCloser, error){
		Gzip: func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		XZ:   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
		Zstd: func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
		LZ4Legacy: func(w io.Writer) (io.WriteCloser, error) {
			z := lz4.NewWriter(w)
			err := z.Apply(lz4.LegacyOption(true))
			return z, err
		},
	} {
		var b bytes.Buffer
		w, err := open(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		out[f] = b.Bytes()
	}
	out[None] = []byte(text)
	return out
}

func read(raw []byte) (string, error) {
	r, err := NewReader(Detect(raw[:min(len(raw), MagicSize)]), bytes.NewReader(raw))
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, 1<<20))
	return string(b), err
}

func TestReadsEveryForm(t *testing.T) {
	text := strings.Repeat("a text that is long enough to be compressed. ", 999)
	for f, raw := range forms(t, text) {
		if got := Detect(raw); got != f {
			t.Errorf("%s is taken for %s", f, got)
		}
		if got, err := read(raw); err != nil || got != text {
			t.Errorf("%s: %d bytes, %v", f, len(got), err)
		}
		if f == None {
			continue
		}
		if f != LZ4Legacy { // has no end mark: two frames are told apart only by their magic
			if got, err := read(append(bytes.Clone(raw), raw...)); err != nil || got != text+text {
				t.Errorf("%s twice: %d bytes, %v", f, len(got), err)
			}
		}
		if _, err := read(raw[:len(raw)-5]); err == nil {
			t.Errorf("%s: what is missing was not missed", f)
		}
	}
}

func TestNamesWhatItCannotRead(t *testing.T) {
	for f, head := range map[Format]string{
		Bzip2: "BZh91AY", LZMA: "\x5d\x00\x00\x80\x00", LZO: "\x89LZO\x00\r", LZ4: "\x04\x22\x4d\x18",
	} {
		_, err := read([]byte(head))
		if err == nil || !strings.Contains(err.Error(), string(f)) {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func FuzzNewReader(f *testing.F) {
	for _, raw := range forms(f, "a text, a text, a text") {
		f.Add(raw)
	}
	f.Fuzz(func(_ *testing.T, raw []byte) {
		_, _ = read(raw) // it may fail, and must not panic or take all memory
	})
}
