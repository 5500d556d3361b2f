package cli

import (
	"io"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
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

// BenchmarkInput is how fast stdin flows, by cipher.
func BenchmarkInput(b *testing.B) {
	const size = 64 << 20
	for _, cipher := range []string{ssh.CipherAES128GCM, ssh.CipherChaCha20Poly1305} {
		b.Run(cipher, func(b *testing.B) {
			d := newFakeDaemon(b)
			d.running("box")
			d.guest.config.Ciphers = []string{cipher}
			b.SetBytes(size)
			for b.Loop() {
				in := io.LimitReader(zeros{}, size)
				if got := d.banger(in, "vm", "exec", "box", "--", "sh", "-c", "cat >/dev/null"); got.code != 0 {
					b.Fatalf("%+v", got)
				}
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
