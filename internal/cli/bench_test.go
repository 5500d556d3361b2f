package cli

import (
	"io"
	"strings"
	"testing"
)

// BenchmarkExec is a whole vm exec inside one process, without the guest.
func BenchmarkExec(b *testing.B) {
	d := newFakeDaemon(b)
	d.running("box")
	for b.Loop() {
		if got := d.banger(strings.NewReader(""), "vm", "exec", "box", "--", "true"); got.code != 0 {
			b.Fatalf("%+v", got)
		}
	}
}

// BenchmarkInput is how fast stdin flows.
func BenchmarkInput(b *testing.B) {
	const size = 64 << 20
	d := newFakeDaemon(b)
	d.running("box")
	b.SetBytes(size)
	for b.Loop() {
		in := io.LimitReader(zeros{}, size)
		if got := d.banger(in, "vm", "exec", "box", "--", "sh", "-c", "cat >/dev/null"); got.code != 0 {
			b.Fatalf("%+v", got)
		}
	}
}

// BenchmarkOutput is how fast stdout flows.
func BenchmarkOutput(b *testing.B) {
	const size = 64 << 20
	d := newFakeDaemon(b)
	d.running("box")
	b.SetBytes(size)
	for b.Loop() {
		if got := d.banger(strings.NewReader(""), "vm", "exec", "box", "--", "head", "-c", "67108864", "/dev/zero"); got.code != 0 || len(got.out) != size {
			b.Fatalf("code %d, %d bytes", got.code, len(got.out))
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
