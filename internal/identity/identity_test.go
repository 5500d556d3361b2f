package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func open(t *testing.T) *Authority {
	t.Helper()
	a, err := Open(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func parse(t *testing.T, text string) ssh.PublicKey {
	t.Helper()
	key, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(text))
	if err != nil || len(rest) > 0 {
		t.Fatalf("ParseAuthorizedKey(%q) = rest %q, %v", text, rest, err)
	}
	return key
}

func publicLine(t *testing.T, key any) string {
	t.Helper()
	k, err := ssh.NewPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return line(k)
}

func checker(ca string, t *testing.T) *ssh.CertChecker {
	want := parse(t, ca).Marshal()
	is := func(key ssh.PublicKey) bool { return bytes.Equal(key.Marshal(), want) }
	return &ssh.CertChecker{
		IsUserAuthority: is,
		IsHostAuthority: func(key ssh.PublicKey, _ string) bool { return is(key) },
	}
}

func TestUserCertificate(t *testing.T) {
	a := open(t)
	key, _, err := newKey("")
	if err != nil {
		t.Fatal(err)
	}
	text, before, err := a.SignUser(line(key.PublicKey())+" me@host", 3*time.Minute, "dev")
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(before); left < 2*time.Minute || left > 3*time.Minute {
		t.Errorf("valid for %v, want about 3m", left)
	}
	cert := parse(t, text).(*ssh.Certificate)
	check := checker(a.UserCA(), t)
	if !check.IsUserAuthority(cert.SignatureKey) || cert.CertType != ssh.UserCert {
		t.Error("not a user certificate of the user authority")
	}
	if err := check.CheckCert("root", cert); err != nil {
		t.Errorf("CheckCert(root) = %v", err)
	}
	if err := check.CheckCert("daemon", cert); err == nil {
		t.Error("the certificate opens another account than root")
	}
	for name, clock := range map[string]time.Duration{"late": 4 * time.Minute, "early": -6 * time.Minute} {
		check.Clock = func() time.Time { return time.Now().Add(clock) }
		if err := check.CheckCert("root", cert); err == nil {
			t.Errorf("%s: certificate is still valid", name)
		}
	}
	check.Clock = func() time.Time { return time.Now().Add(-4 * time.Minute) }
	if err := check.CheckCert("root", cert); err != nil {
		t.Errorf("a guest whose clock lags 4 minutes refuses: %v", err)
	}
	if cert.KeyId != "dev" || len(cert.CriticalOptions) != 0 || len(cert.Extensions) != 2 {
		t.Errorf("certificate = id %q, options %v, extensions %v", cert.KeyId, cert.CriticalOptions, cert.Extensions)
	}
}

func TestHostCertificate(t *testing.T) {
	a := open(t)
	host, err := a.NewHost("0123456789ab", "web")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey([]byte(host.Private))
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, host.Certificate).(*ssh.Certificate)
	if !bytes.Equal(cert.Key.Marshal(), signer.PublicKey().Marshal()) {
		t.Fatal("certificate is for another key")
	}
	check := checker(a.HostCA(), t)
	check.Clock = func() time.Time { return time.Now().AddDate(30, 0, 0) }
	for _, name := range []string{"0123456789ab", "web", "web.vm"} {
		if err := check.CheckHostKey(name+":22", nil, cert); err != nil {
			t.Errorf("CheckHostKey(%s) = %v", name, err)
		}
	}
	if err := check.CheckHostKey("db:22", nil, cert); err == nil {
		t.Error("the certificate proves another VM")
	}
	if err := checker(a.UserCA(), t).CheckHostKey("web:22", nil, cert); err == nil {
		t.Error("the user authority vouches for hosts")
	}
}

func TestNewHostRefusesNames(t *testing.T) {
	a := open(t)
	for _, name := range []string{"", "*", "a,b", "a b", "a\n"} {
		if _, err := a.NewHost("0123456789ab", name); err == nil {
			t.Errorf("name %q accepted", name)
		}
		if _, err := a.NewHost(name, "web"); err == nil {
			t.Errorf("id %q accepted", name)
		}
	}
}

func TestSignUserRefuses(t *testing.T) {
	a := open(t)
	signer, _, err := newKey("")
	if err != nil {
		t.Fatal(err)
	}
	good := line(signer.PublicKey())
	cert, _, err := a.SignUser(good, time.Minute, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty":       "",
		"no key":      "ssh-ed25519",
		"certificate": cert,
		"two keys":    good + "\n" + good,
		"options":     `command="true" ` + good,
		"dsa":         dsaLine(),
		"short rsa":   rsaLine(t, 1024),
	} {
		if _, _, err := a.SignUser(text, time.Minute, ""); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, d := range []time.Duration{0, -time.Second, 25 * time.Hour} {
		if _, _, err := a.SignUser(good, d, ""); err == nil {
			t.Errorf("validity %v accepted", d)
		}
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"ecdsa": publicLine(t, ec.Public()), "rsa": rsaLine(t, 2048)} {
		if _, _, err := a.SignUser(text, time.Minute, ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func rsaLine(t *testing.T, bits int) string {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return publicLine(t, key.Public())
}

// dsaLine is built by hand: x/crypto/ssh no longer makes such keys.
func dsaLine() string {
	blob := ssh.Marshal(struct {
		Name       string
		P, Q, G, Y *big.Int
	}{"ssh-dss", big.NewInt(7), big.NewInt(3), big.NewInt(2), big.NewInt(4)})
	return "ssh-dss " + base64.StdEncoding.EncodeToString(blob)
}

func TestOpenKeepsKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	var all [8]*Authority
	var group sync.WaitGroup
	for i := range all {
		group.Go(func() {
			a, err := Open(dir)
			if err != nil {
				t.Error(err)
			}
			all[i] = a
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, a := range all {
		if a.UserCA() != all[0].UserCA() || a.HostCA() != all[0].HostCA() {
			t.Fatal("two callers hold different authorities")
		}
	}
	if all[0].UserCA() == all[0].HostCA() {
		t.Error("one key for both purposes")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Fatalf("directory holds %v, %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"open directory": func(dir string) error { return os.Chmod(dir, 0o750) },
		"open key":       func(dir string) error { return os.Chmod(filepath.Join(dir, userKeyFile), 0o640) },
		"half a key": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, hostKeyFile), []byte("-----BEGIN OPENSSH"), 0o600)
		},
		"symlink": func(dir string) error {
			path := filepath.Join(dir, hostKeyFile)
			if err := os.Rename(path, dir+".key"); err != nil {
				return err
			}
			return os.Symlink(dir+".key", path)
		},
		"directory for a key": func(dir string) error {
			path := filepath.Join(dir, userKeyFile)
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Mkdir(path, 0o700)
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "identity")
			if _, err := Open(dir); err != nil {
				t.Fatal(err)
			}
			if err := spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir); err == nil {
				t.Error("accepted")
			}
		})
	}
}
