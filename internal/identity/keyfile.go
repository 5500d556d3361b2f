package identity

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// The private keys in the authority's directory.
const (
	userKeyFile = "user_ca"
	hostKeyFile = "host_ca"

	maxKeyFile = 16 << 10
)

// Open loads the authority kept in dir and makes what is missing. It refuses a
// directory or key that anybody but the caller's user can read: a leaked
// authority opens every VM.
func Open(dir string) (*Authority, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("cannot make SSH authority: %w", err)
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	user, err := openKey(dir, userKeyFile)
	if err != nil {
		return nil, err
	}
	host, err := openKey(dir, hostKeyFile)
	if err != nil {
		return nil, err
	}
	return &Authority{user: user, host: host}, nil
}

func checkDir(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("cannot open SSH authority %s: %w", dir, err)
	}
	return checkPrivate(dir, st, unix.S_IFDIR)
}

func checkPrivate(path string, st unix.Stat_t, kind uint32) error {
	switch {
	case st.Mode&unix.S_IFMT != kind:
		return fmt.Errorf("cannot use SSH authority: %s is not of the expected file type", path)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("cannot use SSH authority: %s belongs to uid %d, want %d", path, st.Uid, os.Geteuid())
	case st.Mode&0o077 != 0:
		return fmt.Errorf("cannot use SSH authority: %s has mode %04o, others may not have access", path, st.Mode&0o7777)
	}
	return nil
}

func openKey(dir, name string) (ssh.Signer, error) {
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createKey(dir, name); err != nil {
			return nil, fmt.Errorf("cannot make SSH authority key %s: %w", path, err)
		}
	}
	raw, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("cannot read SSH authority key %s: %w", path, err)
	}
	if signer.PublicKey().Type() != ssh.KeyAlgoED25519 {
		return nil, fmt.Errorf("cannot use SSH authority key %s: it is not an ed25519 key", path)
	}
	return signer, nil
}

func readPrivate(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read SSH authority key: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("cannot stat %s: %w", path, err)
	}
	if err := checkPrivate(path, st, unix.S_IFREG); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("cannot read SSH authority key %s: %w", path, err)
	}
	return raw, nil
}

// createKey writes a new key beside its final name and links it there, so that
// a crash leaves no half key and of two that race the first wins for both.
func createKey(dir, name string) (err error) {
	_, block, err := newKey("banger " + name)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "."+name+"-*") // 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(tmp.Name())) }()
	_, err = tmp.Write(pem.EncodeToMemory(block))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
