package guest

import (
	"fmt"
	"path"
	"strings"
)

// ValidID reports whether s is a VM id.
func ValidID(s string) bool {
	// No regular expression: the agent pays for compiling it at every boot.
	return len(s) == 12 && strings.Trim(s, "0123456789abcdef") == ""
}

// ValidName reports whether s may name a VM: 1–63 of a–z, 0–9 and -, no hyphen
// at either end. The name becomes a hostname and a DNS label.
func ValidName(s string) bool {
	const alphanumeric = "abcdefghijklmnopqrstuvwxyz0123456789"
	return len(s) >= 1 && len(s) <= 63 &&
		strings.Trim(s, alphanumeric+"-") == "" &&
		!strings.HasPrefix(s, "-") && !strings.HasSuffix(s, "-")
}

// Limits of an identity document.
const (
	maxFiles    = 256
	maxFileSize = 256 << 10
	maxEnv      = 1024
)

// Validate is called by bangerd before it stores the document and by the agent
// before it acts on it.
func (d *Identity) Validate() error {
	switch {
	case !ValidID(d.ID):
		return fmt.Errorf("id %q is not 12 hex digits", d.ID)
	case !ValidName(d.Hostname):
		return fmt.Errorf("hostname %q is not a host name", d.Hostname)
	case !strings.HasPrefix(d.Root.Device, "/dev/") || path.Clean(d.Root.Device) != d.Root.Device:
		return fmt.Errorf("root device %q is not below /dev", d.Root.Device)
	case d.Root.FSType == "" || strings.ContainsAny(d.Root.FSType, "/\x00"):
		return fmt.Errorf("root filesystem type %q is not one", d.Root.FSType)
	case d.Root.Init != "" && !cleanAbs(d.Root.Init):
		return fmt.Errorf("init %q is not an absolute clean path", d.Root.Init)
	case d.SSH.UserCA == "" || d.SSH.HostKey == "" || d.SSH.HostCert == "":
		return fmt.Errorf("ssh authority is incomplete")
	case d.WorkDir != "" && !cleanAbs(d.WorkDir):
		return fmt.Errorf("working directory %q is not an absolute clean path", d.WorkDir)
	case len(d.Entropy) > 1024:
		return fmt.Errorf("entropy of %d bytes is more than 1024", len(d.Entropy))
	case len(d.Files) > maxFiles:
		return fmt.Errorf("%d files are more than %d", len(d.Files), maxFiles)
	}
	if err := validEnv(d.Env); err != nil {
		return err
	}
	for _, f := range d.Files {
		if !cleanAbs(f.Path) || f.Path == "/" || len(f.Content) > maxFileSize || f.Mode > 0o7777 {
			return fmt.Errorf("file %q is refused: want a clean absolute path, mode up to 7777, at most %d bytes", f.Path, maxFileSize)
		}
	}
	return nil
}

// Validate is called by the agent before it runs the command.
func (e *Exec) Validate() error {
	if e.Dir != "" && (!path.IsAbs(e.Dir) || strings.Contains(e.Dir, "\x00")) {
		return fmt.Errorf("directory %q is not absolute", e.Dir)
	}
	for _, a := range e.Argv {
		if strings.Contains(a, "\x00") {
			return fmt.Errorf("an argument holds a NUL byte")
		}
	}
	if e.TTY != nil && strings.Contains(e.TTY.Term, "\x00") {
		return fmt.Errorf("the terminal's name holds a NUL byte")
	}
	return validEnv(e.Env)
}

func validEnv(env []string) error {
	if len(env) > maxEnv {
		return fmt.Errorf("%d variables are more than %d", len(env), maxEnv)
	}
	for _, kv := range env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" || strings.Contains(kv, "\x00") {
			return fmt.Errorf("environment entry %q is not K=V", kv)
		}
	}
	return nil
}

func cleanAbs(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && !strings.Contains(p, "\x00")
}
