package machine

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	userKeyFile    = "id_ed25519"
	knownHostsFile = "known_hosts"
	sshConfigFile  = "ssh_config"
	seedFile       = "seed.tar"
)

// writeKeys makes the machine's keys: one that opens it, one that it proves
// itself with. The second is known to ssh before the machine boots for the
// first time.
func writeKeys(ctx context.Context, dir string) error {
	userKey, userPublic, err := newKey(ctx, dir, "banger machine user")
	if err != nil {
		return err
	}
	hostKey, hostPublic, err := newKey(ctx, dir, "banger machine host")
	if err != nil {
		return err
	}
	var seed bytes.Buffer
	w := tar.NewWriter(&seed)
	for _, f := range []struct {
		name    string
		mode    int64
		content []byte
	}{
		{"authorized_keys", 0o644, userPublic},
		{"ssh_host_ed25519_key", 0o600, hostKey},
		{"ssh_host_ed25519_key.pub", 0o644, hostPublic},
	} {
		if err := addFile(w, f.name, f.mode, f.content); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		userKeyFile:    userKey,
		knownHostsFile: append([]byte(hostAlias+" "), hostPublic...),
		// A drive's size is a multiple of 512 bytes, as a tar's is.
		seedFile: seed.Bytes(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return fmt.Errorf("cannot write the machine's keys: %w", err)
		}
	}
	return nil
}

// newKey returns a key as OpenSSH stores it and its public half as a line.
// OpenSSH makes it itself: it is there whenever ssh is, and the library for
// its file format would be a tenth of banger, loaded by every command.
func newKey(ctx context.Context, dir, comment string) (private, public []byte, err error) {
	dir, err = os.MkdirTemp(dir, "key-")
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a key: %w", err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "key")
	out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", file).CombinedOutput()
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a key: ssh-keygen: %w: %s", err, bytes.TrimSpace(out))
	}
	if private, err = os.ReadFile(file); err != nil {
		return nil, nil, fmt.Errorf("cannot make a key: %w", err)
	}
	if public, err = os.ReadFile(file + ".pub"); err != nil {
		return nil, nil, fmt.Errorf("cannot make a key: %w", err)
	}
	return private, public, nil
}

// sunPathMax is the kernel's limit on a Unix socket's path, less the 17
// characters ssh appends while it makes one.
const sunPathMax = 107 - 17

// sshConfig is what ssh needs to reach the machine whose files are in dir.
func sshConfig(dir string, port int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written when the machine starts: ssh -F THIS_FILE %s\nHost %s\n", hostAlias, hostAlias)
	for _, line := range [][2]string{
		{"HostName", "127.0.0.1"},
		{"Port", fmt.Sprint(port)},
		{"User", Owner},
		{"HostKeyAlias", hostAlias},
		{"StrictHostKeyChecking", "yes"},
		{"UserKnownHostsFile", sshPath(dir, knownHostsFile)},
		{"GlobalKnownHostsFile", "/dev/null"},
		{"UpdateHostKeys", "no"},
		{"IdentityFile", sshPath(dir, userKeyFile)},
		{"IdentitiesOnly", "yes"},
		{"IdentityAgent", "none"},
		{"PreferredAuthentications", "publickey"},
		{"BatchMode", "yes"},
		{"ForwardAgent", "no"},
		{"ConnectTimeout", "20"}, // a new one takes seconds where all is emulated
		// An emulated guest on a busy host stands still for a minute and goes on.
		// When QEMU is gone, the connection breaks without this.
		{"ServerAliveInterval", "30"},
		{"ServerAliveCountMax", "10"},
		{"LogLevel", "ERROR"},
	} {
		fmt.Fprintf(&b, "    %s %s\n", line[0], line[1])
	}
	// One connection serves all commands, as a new one costs a second where
	// the machine's processor is emulated.
	if len(filepath.Join(dir, "ssh-banger")) <= sunPathMax {
		fmt.Fprintf(&b, "    ControlMaster auto\n    ControlPath %s\n    ControlPersist 300\n", sshPath(dir, "ssh-%r"))
	}
	return b.String()
}

// sshPath writes a path for ssh_config: in quotes, since it may hold spaces;
// its per cent signs are no tokens, those of name are.
func sshPath(dir, name string) string {
	return `"` + strings.ReplaceAll(dir, "%", "%%") + "/" + name + `"`
}
