package guest

import (
	"fmt"
	"net"
	"net/netip"
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
	maxMounts   = 16
	// As many as the C library reads of /etc/resolv.conf.
	maxResolvers = 3
	maxSearch    = 6
)

// Validate is called by bangerd before it stores the document and by the agent
// before it acts on it.
func (d *Identity) Validate() error {
	switch {
	case !ValidID(d.ID):
		return fmt.Errorf("id %q is not 12 hex digits", d.ID)
	case !ValidName(d.Hostname):
		return fmt.Errorf("hostname %q is not a host name", d.Hostname)
	case !isDevice(d.Root.Device):
		return fmt.Errorf("root device %q is not below /dev", d.Root.Device)
	case !isFSType(d.Root.FSType):
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
	if d.Network != nil {
		if err := d.Network.validate(); err != nil {
			return err
		}
	}
	if err := validMounts(d.Mounts, d.Root.Device); err != nil {
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

func isDevice(p string) bool {
	return strings.HasPrefix(p, "/dev/") && cleanAbs(p)
}

func isFSType(s string) bool { return s != "" && !strings.ContainsAny(s, "/\x00") }

// validate holds for IPv4, which is what guests have.
func (n *Network) validate() error {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() != n.MAC {
		return fmt.Errorf("hardware address %q is not one of a network card", n.MAC)
	}
	prefix, err := netip.ParsePrefix(n.Address)
	if err != nil || !prefix.Addr().Is4() || prefix.Addr().IsUnspecified() || prefix.Addr().IsMulticast() || prefix.Bits() == 0 {
		return fmt.Errorf("address %q is not one with a prefix, as in 172.16.0.5/16", n.Address)
	}
	if n.Gateway != "" {
		gateway, err := netip.ParseAddr(n.Gateway)
		if err != nil || !prefix.Contains(gateway) || gateway == prefix.Addr() {
			return fmt.Errorf("gateway %q is not another address of %s", n.Gateway, prefix.Masked())
		}
	}
	if len(n.DNS) > maxResolvers || len(n.Search) > maxSearch {
		return fmt.Errorf("more than %d resolvers or %d search domains", maxResolvers, maxSearch)
	}
	for _, r := range n.DNS {
		if addr, err := netip.ParseAddr(r); err != nil || addr.Zone() != "" {
			return fmt.Errorf("resolver %q is not an address", r)
		}
	}
	for _, domain := range n.Search {
		for label := range strings.SplitSeq(domain, ".") {
			if !ValidName(label) || len(domain) > 253 {
				return fmt.Errorf("search domain %q is not one", domain)
			}
		}
	}
	return nil
}

// validMounts refuses what would hide the root or what the agent mounts itself.
func validMounts(mounts []Mount, rootDevice string) error {
	if len(mounts) > maxMounts {
		return fmt.Errorf("%d mounts are more than %d", len(mounts), maxMounts)
	}
	devices, points := map[string]bool{rootDevice: true}, map[string]bool{}
	for _, m := range mounts {
		top, _, _ := strings.Cut(strings.TrimPrefix(m.Path, "/"), "/")
		switch {
		case !isDevice(m.Device) || devices[m.Device]:
			return fmt.Errorf("device %q of a mount is not below /dev, or is used already", m.Device)
		case !isFSType(m.FSType):
			return fmt.Errorf("filesystem type %q is not one", m.FSType)
		case (m.Grow || m.Fill) && m.FSType != "ext4":
			return fmt.Errorf("a filesystem of type %q cannot be grown or filled", m.FSType)
		case !cleanAbs(m.Path) || m.Path == "/" || points[m.Path]:
			return fmt.Errorf("mount point %q is not a clean absolute path below /, or is used already", m.Path)
		case top == "dev" || top == "proc" || top == "sys" || top == "run":
			return fmt.Errorf("mount point %q belongs to the system", m.Path)
		}
		devices[m.Device], points[m.Path] = true, true
	}
	return nil
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
