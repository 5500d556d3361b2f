package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/internal/guest"
)

func newSigner(t *testing.T) ssh.Signer {
	t.Helper()
	s, _ := newKey(t)
	return s
}

func newKey(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return s, string(pem.EncodeToMemory(block))
}

// certify signs a certificate for key that is good for a minute, after spoil
// has had its way with it.
func certify(t *testing.T, authority ssh.Signer, key ssh.PublicKey, kind uint32, principal string, spoil func(*ssh.Certificate)) *ssh.Certificate {
	t.Helper()
	now := time.Now()
	cert := &ssh.Certificate{
		Key: key, CertType: kind, ValidPrincipals: []string{principal},
		ValidAfter: uint64(now.Add(-time.Minute).Unix()), ValidBefore: uint64(now.Add(time.Minute).Unix()),
	}
	if spoil != nil {
		spoil(cert)
	}
	if err := cert.SignCert(rand.Reader, authority); err != nil {
		t.Fatal(err)
	}
	return cert
}

// testServer is an sshServer on a socket, and its authority.
type testServer struct {
	*sshServer
	authority ssh.Signer
	addr      string
	home      string
}

func serveSSH(t *testing.T) *testServer {
	t.Helper()
	authority := newSigner(t)
	host, hostPEM := newKey(t)
	keys := guest.SSH{
		UserCA:   string(ssh.MarshalAuthorizedKey(authority.PublicKey())),
		HostKey:  hostPEM,
		HostCert: string(ssh.MarshalAuthorizedKey(certify(t, authority, host.PublicKey(), ssh.HostCert, "vm", nil))),
	}
	l, home := testLauncher(t)
	srv, err := newSSHServer(keys, l, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go srv.serve(listener)
	return &testServer{srv, authority, listener.Addr().String(), home}
}

// testLauncher runs commands on this host as in a guest whose root has home.
func testLauncher(t testing.TB) (l *launcher, home string) {
	t.Helper()
	home = t.TempDir()
	return &launcher{
		env:      []string{"FROM_IMAGE=1", "BOTH=image"},
		accounts: etc(t, "root:x:0:0:root:"+home+":/bin/sh\n", ""),
		spawner:  &spawner{log: testLogger(t)},
	}, home
}

func (s *testServer) dial(t *testing.T, user string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "unix", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	check := &ssh.CertChecker{IsHostAuthority: func(k ssh.PublicKey, _ string) bool {
		return bytes.Equal(k.Marshal(), s.authority.PublicKey().Marshal())
	}}
	c, channels, requests, err := ssh.NewClientConn(conn, "vm:22", &ssh.ClientConfig{
		User: user, Auth: auth, HostKeyCallback: check.CheckHostKey,
	})
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	client := ssh.NewClient(c, channels, requests)
	t.Cleanup(func() { _ = client.Close() })
	return client, nil
}

func (s *testServer) login(t *testing.T) *ssh.Client {
	t.Helper()
	user := newSigner(t)
	cert := certify(t, s.authority, user.PublicKey(), ssh.UserCert, "root", nil)
	c, err := s.dial(t, "root", withCert(t, cert, user))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func withCert(t *testing.T, cert *ssh.Certificate, key ssh.Signer) ssh.AuthMethod {
	t.Helper()
	s, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return ssh.PublicKeys(s)
}

func TestAuthentication(t *testing.T) {
	for name, tt := range map[string]struct {
		user, principal string
		spoil           func(*ssh.Certificate)
		works           bool
	}{
		"root for root":     {"root", "root", nil, true},
		"root for another":  {"dev", "root", nil, true},
		"user for itself":   {"dev", "dev", nil, true},
		"user for root":     {"root", "dev", nil, false},
		"user for another":  {"dev", "other", nil, false},
		"expired":           {"root", "root", func(c *ssh.Certificate) { c.ValidBefore = uint64(time.Now().Add(-time.Second).Unix()) }, false},
		"not valid yet":     {"root", "root", func(c *ssh.Certificate) { c.ValidAfter = uint64(time.Now().Add(time.Minute).Unix()) }, false},
		"host certificate":  {"root", "root", func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, false},
		"critical option":   {"root", "root", func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "x"} }, false},
		"bound to a source": {"root", "root", func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "0.0.0.0/0"} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveSSH(t)
			key := newSigner(t)
			cert := certify(t, s.authority, key.PublicKey(), ssh.UserCert, tt.principal, tt.spoil)
			if _, err := s.dial(t, tt.user, withCert(t, cert, key)); (err == nil) != tt.works {
				t.Errorf("works should be %v: %v", tt.works, err)
			}
		})
	}
}

func TestAuthenticationByOtherMeans(t *testing.T) {
	s := serveSSH(t)
	key, stranger := newSigner(t), newSigner(t)
	foreign := certify(t, stranger, key.PublicKey(), ssh.UserCert, "root", nil)
	for name, auth := range map[string][]ssh.AuthMethod{
		"nothing":                {},
		"a plain key":            {ssh.PublicKeys(key)},
		"the authority's key":    {ssh.PublicKeys(s.authority)},
		"another authority":      {withCert(t, foreign, key)},
		"a password":             {ssh.Password("")},
		"a key, then a password": {ssh.PublicKeys(key), ssh.Password("root")},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := s.dial(t, "root", auth...); err == nil {
				t.Error("logged in")
			}
		})
	}
}

func TestHostProvesItselfByCertificateOnly(t *testing.T) {
	s := serveSSH(t)
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "unix", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _, _, err = ssh.NewClientConn(conn, "vm:22", &ssh.ClientConfig{
		User:              "root",
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		HostKeyCallback:   func(string, net.Addr, ssh.PublicKey) error { return nil },
	})
	if err == nil || !strings.Contains(err.Error(), "no common algorithm") {
		t.Errorf("error is: %v", err)
	}
}

func TestKeysOfTheIdentityAreChecked(t *testing.T) {
	authority := newSigner(t)
	host, hostPEM := newKey(t)
	good := guest.SSH{
		UserCA:   string(ssh.MarshalAuthorizedKey(authority.PublicKey())),
		HostKey:  hostPEM,
		HostCert: string(ssh.MarshalAuthorizedKey(certify(t, authority, host.PublicKey(), ssh.HostCert, "vm", nil))),
	}
	if _, err := sshConfig(good); err != nil {
		t.Fatal(err)
	}
	other := certify(t, authority, newSigner(t).PublicKey(), ssh.HostCert, "vm", nil)
	user := certify(t, authority, host.PublicKey(), ssh.UserCert, "vm", nil)
	for name, spoil := range map[string]func(*guest.SSH){
		"authority is no key":       func(k *guest.SSH) { k.UserCA = "ssh-ed25519 x" },
		"host key is no key":        func(k *guest.SSH) { k.HostKey = "-----BEGIN" },
		"certificate is a key":      func(k *guest.SSH) { k.HostCert = k.UserCA },
		"certificate of another":    func(k *guest.SSH) { k.HostCert = string(ssh.MarshalAuthorizedKey(other)) },
		"certificate is for a user": func(k *guest.SSH) { k.HostCert = string(ssh.MarshalAuthorizedKey(user)) },
	} {
		t.Run(name, func(t *testing.T) {
			bad := good
			spoil(&bad)
			if _, err := sshConfig(bad); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestForward(t *testing.T) {
	s := serveSSH(t)
	c := s.login(t)
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go echoOnce(l)
	conn, err := c.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	checkEcho(t, conn)
	if _, err := c.Dial("tcp", "192.0.2.1:80"); err == nil || !strings.Contains(err.Error(), "localhost") {
		t.Errorf("a way out of the guest: %v", err)
	}
}
