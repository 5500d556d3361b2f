package machine

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// The two sides must fit: what the guest gets must be what the host expects.
func TestKeysFit(t *testing.T) {
	dir := t.TempDir()
	if err := writeKeys(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
		return content
	}
	seed, modes := map[string][]byte{}, map[string]int64{}
	raw := read(seedFile)
	if len(raw)%512 != 0 {
		t.Errorf("the seed has %d bytes, which is no size for a drive", len(raw))
	}
	r := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if seed[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		modes[h.Name] = h.Mode
	}
	if modes["ssh_host_ed25519_key"] != 0o600 {
		t.Errorf("mode of the host key is %o; sshd refuses it", modes["ssh_host_ed25519_key"])
	}
	public := func(private []byte) string {
		signer, err := ssh.ParsePrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	}
	// A line may end with a remark.
	if got := public(read(userKeyFile)); !strings.HasPrefix(string(seed["authorized_keys"]), got) {
		t.Errorf("the guest lets %q in, not %q", seed["authorized_keys"], got)
	}
	host := public(seed["ssh_host_ed25519_key"])
	if got := string(read(knownHostsFile)); !strings.HasPrefix(got, hostAlias+" "+host) || strings.Count(got, "\n") != 1 {
		t.Errorf("the host expects %q, the guest has %q", got, host)
	}
}

// ssh itself must read the configuration as it was meant.
func TestSSHConfig(t *testing.T) {
	for name, dir := range map[string]string{
		"plain":    filepath.Join(t.TempDir(), "m"),
		"spaces":   filepath.Join(t.TempDir(), "my machine"),
		"per cent": filepath.Join(t.TempDir(), "100%h"),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, sshConfigFile)
			if err := os.WriteFile(file, []byte(sshConfig(dir, 2222)), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), "ssh", "-G", "-F", file, hostAlias).Output()
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"hostname 127.0.0.1", "port 2222", "user " + Owner,
				"stricthostkeychecking true", "hostkeyalias " + hostAlias, "identitiesonly yes", "batchmode yes"} {
				if !strings.Contains("\n"+string(out), "\n"+want+"\n") {
					t.Errorf("ssh did not understand %q:\n%s", want, out)
				}
			}
			// -G shows paths with their tokens; of both our files the text must be there.
			escaped := strings.ReplaceAll(dir, "%", "%%")
			for _, want := range []string{knownHostsFile, userKeyFile} {
				if !strings.Contains(string(out), escaped+"/"+want) && !strings.Contains(string(out), dir+"/"+want) {
					t.Errorf("ssh does not know %s", want)
				}
			}
		})
	}
}

func TestLongPathsGetNoSharedConnection(t *testing.T) {
	if strings.Contains(sshConfig("/"+strings.Repeat("x", 90), 1), "ControlPath") {
		t.Error("a socket's path cannot be that long")
	}
	if !strings.Contains(sshConfig("/home/x/.local/share/banger/machine/default", 1), "ControlPath") {
		t.Error("the usual place is short enough")
	}
}
