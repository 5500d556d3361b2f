package agent

import (
	"crypto/aes"
	"crypto/cipher"
	"time"

	"golang.org/x/crypto/ssh"
)

// quickAES is how long a processor that helps with AES takes at most for a
// page; it is tens of times faster than that, an emulated one tens of times
// slower.
const quickAES = 100 * time.Microsecond

// ciphers are what sessions may be encrypted with. The client's order decides
// among what is offered, and clients like AES; where that is slow it is not
// offered, which makes bulk data several times faster.
func ciphers() []string {
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		return []string{ssh.CipherChaCha20Poly1305}
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return []string{ssh.CipherChaCha20Poly1305}
	}
	nonce, page := make([]byte, gcm.NonceSize()), make([]byte, 4096, 4096+16)
	gcm.Seal(page[:0], nonce, page, nil) // the first touches its tables
	begun := time.Now()
	gcm.Seal(page[:0], nonce, page[:4096], nil)
	if time.Since(begun) > quickAES {
		return []string{ssh.CipherChaCha20Poly1305}
	}
	return []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305}
}
