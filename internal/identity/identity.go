// Package identity is the SSH authority of one installation: two ed25519 keys,
// one that signs the certificates people open sessions with and one that signs
// the host keys of VMs. Whoever trusts the two public halves needs no trust on
// first use, no known_hosts entry per VM and no copied key.
//
// The keys are kept apart so that no certificate made for one purpose can be
// shown for the other. Losing them costs nothing but new ones: running VMs keep
// the authority they booted with until their next start.
package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// Principal is the only account a user certificate opens.
	Principal = "root"

	// clockSkew is how far a guest's clock may lag behind ours.
	clockSkew = 5 * time.Minute
	// maxUserValidity bounds what a stolen certificate is worth.
	maxUserValidity = 24 * time.Hour

	minRSABits = 2048
)

// Authority signs keys. It is safe for use by several goroutines.
type Authority struct {
	user ssh.Signer
	host ssh.Signer
}

// HostKey is what a VM proves its identity with.
type HostKey struct {
	Private     string // OpenSSH PEM
	Certificate string // authorized_keys line
}

// UserCA returns the public key that guests trust for sessions, as an
// authorized_keys line without a final newline.
func (a *Authority) UserCA() string { return line(a.user.PublicKey()) }

// HostCA returns the public key that clients trust for VMs, for use behind
// @cert-authority in a known_hosts file.
func (a *Authority) HostCA() string { return line(a.host.PublicKey()) }

// SignUser certifies the public key in an authorized_keys line for sessions as
// root with terminal and port forwarding. keyID appears in the guest's log.
func (a *Authority) SignUser(publicKeyLine string, validFor time.Duration, keyID string) (cert string, validBefore time.Time, err error) {
	if validFor <= 0 || validFor > maxUserValidity {
		return "", time.Time{}, fmt.Errorf("cannot sign user key: validity %v is not between 0 and %v", validFor, maxUserValidity)
	}
	key, err := parseUserKey(publicKeyLine)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("cannot sign user key: %w", err)
	}
	now := time.Now()
	validBefore = now.Add(validFor).Truncate(time.Second)
	c := &ssh.Certificate{
		Key:             key,
		CertType:        ssh.UserCert,
		KeyId:           keyID,
		ValidPrincipals: []string{Principal},
		ValidAfter:      uint64(now.Add(-clockSkew).Unix()),
		ValidBefore:     uint64(validBefore.Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{
			"permit-pty":             "",
			"permit-port-forwarding": "",
		}},
	}
	if err := sign(c, a.user); err != nil {
		return "", time.Time{}, fmt.Errorf("cannot sign user key: %w", err)
	}
	return line(c), validBefore, nil
}

// NewHost makes a host key for a VM and certifies it for the VM's id, its name
// and name.vm. The certificate does not expire: it is worth nothing without
// this authority, and a VM that slept for a year must still be reachable.
func (a *Authority) NewHost(id, name string) (HostKey, error) {
	// A certificate without principals would be valid for every host.
	for _, p := range []string{id, name} {
		if p == "" || strings.ContainsAny(p, ",*? \t\r\n") {
			return HostKey{}, fmt.Errorf("cannot certify host key: %q is not the name of a VM", p)
		}
	}
	signer, block, err := newKey("banger VM " + id)
	if err != nil {
		return HostKey{}, fmt.Errorf("cannot make host key of VM %s: %w", name, err)
	}
	c := &ssh.Certificate{
		Key:             signer.PublicKey(),
		CertType:        ssh.HostCert,
		KeyId:           "banger VM " + id,
		ValidPrincipals: []string{id, name, name + ".vm"},
		ValidBefore:     ssh.CertTimeInfinity,
	}
	if err := sign(c, a.host); err != nil {
		return HostKey{}, fmt.Errorf("cannot certify host key of VM %s: %w", name, err)
	}
	return HostKey{Private: string(pem.EncodeToMemory(block)), Certificate: line(c)}, nil
}

// parseUserKey accepts one plain public key of a kind that is safe today.
func parseUserKey(publicKeyLine string) (ssh.PublicKey, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(publicKeyLine))
	if err != nil {
		return nil, fmt.Errorf("not a public key in authorized_keys form")
	}
	if len(options) > 0 || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("want one line with a public key and no options")
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256,
		ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return key, nil
	case ssh.KeyAlgoRSA:
		if bits, err := rsaBits(key); err != nil || bits < minRSABits {
			return nil, fmt.Errorf("an RSA key needs at least %d bits", minRSABits)
		}
		return key, nil
	}
	return nil, fmt.Errorf("a key of type %q cannot be certified", key.Type())
}

func rsaBits(key ssh.PublicKey) (int, error) {
	crypto, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return 0, fmt.Errorf("not a crypto key")
	}
	sized, ok := crypto.CryptoPublicKey().(interface{ Size() int })
	if !ok {
		return 0, fmt.Errorf("not an RSA key")
	}
	return sized.Size() * 8, nil
}

func sign(c *ssh.Certificate, ca ssh.Signer) error {
	var serial [8]byte
	if _, err := rand.Read(serial[:]); err != nil {
		return err
	}
	c.Serial = binary.BigEndian.Uint64(serial[:])
	return c.SignCert(rand.Reader, ca)
}

func newKey(comment string) (ssh.Signer, *pem.Block, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return nil, nil, err
	}
	return signer, block, nil
}

func line(key ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")
}
