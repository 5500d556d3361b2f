package cli

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/api"
	"banger/client"
	"banger/internal/guest"
)

// handshakeTime bounds the SSH handshake with an agent that already answered.
const handshakeTime = 30 * time.Second

// guestUser is the account certificates are made out for.
const guestUser = "root"

// credentials open sessions for some minutes. The private key never leaves
// this process.
type credentials struct {
	signer ssh.Signer
	hostCA ssh.PublicKey
}

// certify makes a key and has the daemon's authority certify it.
func certify(ctx context.Context, c *client.Client) (*credentials, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot make a session key: %w", err)
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, fmt.Errorf("cannot make a session key: %w", err)
	}
	answer, err := c.Certify(ctx, string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key.PublicKey()))))
	if err != nil {
		return nil, fmt.Errorf("cannot get a session certificate: %w", err)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(answer.Certificate))
	if err != nil {
		return nil, fmt.Errorf("cannot read the session certificate: %w", err)
	}
	cert, ok := public.(*ssh.Certificate)
	if !ok {
		return nil, api.Internal("bangerd sent a key instead of a certificate")
	}
	hostCA, _, _, _, err := ssh.ParseAuthorizedKey([]byte(answer.HostCA))
	if err != nil {
		return nil, fmt.Errorf("cannot read the host authority: %w", err)
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		return nil, fmt.Errorf("cannot use the session certificate: %w", err)
	}
	return &credentials{signer: signer, hostCA: hostCA}, nil
}

// guestConn is an SSH connection to a VM.
type guestConn struct {
	ssh.Conn
}

// openGuest dials and authenticates. id and cred are asked for when the
// handshake needs them, so that they can be fetched in the meantime.
func openGuest(ctx context.Context, c *client.Client, ref string, id func() (string, error), cred func() (*credentials, error)) (*guestConn, error) {
	conn, err := c.Dial(ctx, ref, guest.SSHPort)
	if err != nil {
		return nil, err
	}
	g, err := handshake(ctx, conn, id, cred)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return g, nil
}

func handshake(ctx context.Context, conn net.Conn, id func() (string, error), cred func() (*credentials, error)) (*guestConn, error) {
	config := &ssh.ClientConfig{
		User: guestUser,
		Auth: []ssh.AuthMethod{ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
			k, err := cred()
			if err != nil {
				return nil, err
			}
			return []ssh.Signer{k.signer}, nil
		})},
		HostKeyCallback: func(_ string, remote net.Addr, key ssh.PublicKey) error {
			k, err := cred()
			if err != nil {
				return err
			}
			vm, err := id()
			if err != nil {
				return err
			}
			return hostChecker(k.hostCA).CheckHostKey(net.JoinHostPort(vm, "22"), remote, key)
		},
		HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01},
		ClientVersion:     "SSH-2.0-banger",
	}
	// Nobody records this traffic for a later quantum computer: it stays on
	// the host, or travels within the user's OpenSSH. So the cheap exchange.
	config.KeyExchanges = []string{ssh.KeyExchangeCurve25519}
	config.Ciphers = []string{ssh.CipherAES128GCM, ssh.CipherChaCha20Poly1305}

	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return nil, fmt.Errorf("cannot bound the handshake: %w", err)
	}
	sshConn, channels, requests, err := ssh.NewClientConn(conn, "guest:22", config)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if p, ok := errors.AsType[*api.Problem](err); ok {
			return nil, p
		}
		return nil, fmt.Errorf("cannot open a session in the guest: %w", err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("cannot free the session of its deadline: %w", err)
	}
	go ssh.DiscardRequests(requests)
	go func() { // the guest has nothing to open here
		for ch := range channels {
			_ = ch.Reject(ssh.Prohibited, "banger accepts no channels")
		}
	}()
	return &guestConn{sshConn}, nil
}

// hostChecker accepts only keys that this installation's authority certified.
func hostChecker(authority ssh.PublicKey) *ssh.CertChecker {
	want := authority.Marshal()
	return &ssh.CertChecker{IsHostAuthority: func(key ssh.PublicKey, _ string) bool {
		return bytes.Equal(key.Marshal(), want)
	}}
}
