// Package installed reads and writes /etc/banger/install.toml, the root-owned
// record of an installation that every program of banger trusts. The file is a
// flat subset of TOML (key = "string" or key = integer), read here without a
// TOML library because banger-helper links a closed list of modules.
package installed

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Record describes an installation.
type Record struct {
	Owner string `json:"owner"` // user name
	UID   int    `json:"uid"`
	GID   int    `json:"gid"`
	// UIDBase and UIDCount are the range reserved in /etc/subuid and
	// /etc/subgid; VM with slot n runs as uid and gid UIDBase+n.
	UIDBase  int `json:"uid_base"`
	UIDCount int `json:"uid_count"`

	// Bridge is the VMs' bridge, Network its address with the prefix of the
	// guests' network; the guest with slot n has that address + 1 + n.
	Bridge  string `json:"bridge"`
	Network string `json:"network"`

	Firecracker       string `json:"firecracker"`
	FirecrackerSHA256 string `json:"firecracker_sha256"`
	Jailer            string `json:"jailer"`
	JailerSHA256      string `json:"jailer_sha256"`

	Version     string `json:"version"`
	InstalledAt string `json:"installed_at"` // RFC 3339
}

// What an installation gets that asks for nothing.
const (
	DefaultBridge  = "br-fc"
	DefaultNetwork = "172.16.0.1/16"
)

// Load reads the record at path. The file must belong to root and be writable
// by nobody else: whoever writes it decides who may use the helper.
func Load(path string) (Record, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return Record{}, fmt.Errorf("cannot read installation record: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Record{}, fmt.Errorf("cannot stat %s: %w", path, err)
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return Record{}, fmt.Errorf("%s must be a regular file of root that nobody else can write", path)
	}
	var raw bytes.Buffer
	if _, err := raw.ReadFrom(f); err != nil {
		return Record{}, fmt.Errorf("cannot read %s: %w", path, err)
	}
	r, err := Parse(raw.String())
	if err != nil {
		return Record{}, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return r, nil
}

// Parse reads the text of a record and refuses unknown keys, repeated keys and
// values that make no sense.
func Parse(text string) (Record, error) {
	fields := map[string]json.RawMessage{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !ok || key == "" || !json.Valid([]byte(value)) {
			return Record{}, fmt.Errorf("line %d: want key = \"string\" or key = number", i+1)
		}
		if _, dup := fields[key]; dup {
			return Record{}, fmt.Errorf("line %d: key %q again", i+1, key)
		}
		fields[key] = json.RawMessage(value)
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return Record{}, err
	}
	r := Record{Bridge: DefaultBridge, Network: DefaultNetwork} // of records made before there was a network
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Record{}, err
	}
	return r, r.validate()
}

func (r Record) validate() error {
	switch {
	case r.Owner == "":
		return fmt.Errorf("owner is missing")
	case r.UID <= 0 || r.GID <= 0:
		return fmt.Errorf("owner may not be root (uid %d, gid %d)", r.UID, r.GID)
	case r.UIDBase < 65536 || r.UIDCount < 1 || r.UIDBase > 1<<31-1-r.UIDCount:
		return fmt.Errorf("uid range %d+%d is not usable", r.UIDBase, r.UIDCount)
	case r.UID >= r.UIDBase && r.UID < r.UIDBase+r.UIDCount:
		return fmt.Errorf("owner's uid %d lies in the VMs' uid range", r.UID)
	case !strings.HasPrefix(r.Firecracker, "/") || !strings.HasPrefix(r.Jailer, "/"):
		return fmt.Errorf("firecracker and jailer must be absolute paths")
	}
	return CheckNetwork(r.Bridge, r.Network)
}

// CheckNetwork says what is wrong with a record's bridge and network.
func CheckNetwork(bridge, network string) error {
	if !bridgeName(bridge) {
		return fmt.Errorf("bridge %q is not a name of 1 to 15 characters a-z, 0-9 and '-'", bridge)
	}
	prefix, err := netip.ParsePrefix(network)
	if err != nil || !prefix.Addr().Is4() || prefix.Bits() < 8 || prefix.Bits() > 28 || prefix.Masked().Addr().Next() != prefix.Addr() {
		return fmt.Errorf("network %q is not the first address of an IPv4 network with 8 to 28 bits, as in %s", network, DefaultNetwork)
	}
	return nil
}

// bridgeName keeps to what fits a network device and needs no quoting anywhere.
func bridgeName(s string) bool {
	return len(s) >= 1 && len(s) <= 15 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-'
}

// GuestAddress is the address of the guest with that slot, and whether the
// network has room for it.
func (r Record) GuestAddress(slot int) (netip.Prefix, bool) {
	own, err := netip.ParsePrefix(r.Network)
	if err != nil || slot < 0 {
		return netip.Prefix{}, false
	}
	b := own.Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) + 1 + uint32(slot)
	binary.BigEndian.PutUint32(b[:], n)
	addr := netip.AddrFrom4(b)
	// The last address of the network is its broadcast.
	return netip.PrefixFrom(addr, own.Bits()), own.Contains(addr) && own.Contains(addr.Next())
}

// Gateway is the bridge's own address, through which guests reach the rest.
func (r Record) Gateway() netip.Addr {
	own, _ := netip.ParsePrefix(r.Network) // checked when it was read
	return own.Addr()
}

// GuestMAC is the hardware address of the guest with that IPv4 address.
func GuestMAC(addr netip.Addr) net.HardwareAddr {
	b := addr.As4()
	return net.HardwareAddr{0x02, 0xfc, b[0], b[1], b[2], b[3]}
}

// Text renders the record as Parse reads it.
func (r Record) Text() (string, error) {
	var b strings.Builder
	b.WriteString("# Written by `banger system install`; do not edit.\n")
	raw, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if _, err := d.Token(); err != nil { // the opening brace
		return "", err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return "", err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%s = %s\n", key, value)
	}
	return b.String(), nil
}
