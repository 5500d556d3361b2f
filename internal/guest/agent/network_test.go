package agent

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

func TestRunFiles(t *testing.T) {
	n := guest.Network{MAC: "02:fc:ac:10:00:05", Address: "172.16.0.5/16", Gateway: "172.16.0.1",
		DNS: []string{"172.16.0.1", "9.9.9.9"}, Search: []string{"vm", "example.org"}}
	want := map[string]string{
		"/run/systemd/network/00-banger.network": "[Match]\nMACAddress=02:fc:ac:10:00:05\n\n[Network]\nAddress=172.16.0.5/16\n" +
			"Gateway=172.16.0.1\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nKeepConfiguration=yes\n",
		"/run/systemd/resolved.conf.d/00-banger.conf": "[Resolve]\nDNS=172.16.0.1 9.9.9.9\nDomains=vm example.org\n",
		"/run/NetworkManager/conf.d/00-banger.conf":   "[keyfile]\nunmanaged-devices=mac:02:fc:ac:10:00:05\n",
		"/run/network/ifstate":                        "eth0=eth0\n",
		"/run/network/ifstate.eth0":                   "eth0\n",
		"/run/ifstate":                                "eth0=eth0\n",
		"/run/resolvconf/interface/eth0.banger":       "nameserver 172.16.0.1\nnameserver 9.9.9.9\nsearch vm example.org\n",
	}
	files := runFiles(n, "eth0")
	for _, f := range files {
		if want[f.Path] != string(f.Content) || f.Mode != 0o644 {
			t.Errorf("%s, mode %o:\n%s", f.Path, f.Mode, f.Content)
		}
		if !strings.HasPrefix(f.Path, "/run/") {
			t.Errorf("%s is in the image", f.Path)
		}
	}
	if len(files) != len(want) {
		t.Errorf("%d files, want %d", len(files), len(want))
	}
	n.DNS, n.Gateway = nil, ""
	for _, f := range runFiles(n, "eth0") {
		if strings.Contains(f.Path, "resolv") || strings.Contains(string(f.Content), "Gateway") {
			t.Errorf("%s without resolver and gateway:\n%s", f.Path, f.Content)
		}
	}
}

func verdict(kind uint16, seq uint32, code int32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, 36)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, uint32(code))
	return append(b, make([]byte, 16)...)
}

func TestAcknowledgement(t *testing.T) {
	other := verdict(unix.RTM_NEWLINK, 0, 0)
	for name, tt := range map[string]struct {
		raw   []byte
		found bool
		err   error
	}{
		"success":          {verdict(unix.NLMSG_ERROR, 7, 0), true, nil},
		"refusal":          {verdict(unix.NLMSG_ERROR, 7, -int32(unix.EEXIST)), true, unix.EEXIST},
		"behind another":   {append(other, verdict(unix.NLMSG_ERROR, 7, -int32(unix.EPERM))...), true, unix.EPERM},
		"of another":       {verdict(unix.NLMSG_ERROR, 6, 0), false, nil},
		"nothing":          {nil, false, nil},
		"part of a header": {[]byte{1, 2, 3}, false, nil},
	} {
		found, err := acknowledgement(tt.raw, 7)
		if found != tt.found || !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
	for _, bad := range [][]byte{
		append([]byte{4, 0, 0, 0}, make([]byte, 12)...),                // shorter than a header
		append([]byte{200, 0, 0, 0}, make([]byte, 12)...),              // longer than what came
		append([]byte{16, 0, 0, 0, 2, 0, 0, 0, 7}, make([]byte, 7)...), // no verdict in it
	} {
		if found, err := acknowledgement(bad, 7); !found || err == nil {
			t.Errorf("%v: %v, %v", bad, found, err)
		}
	}
}
