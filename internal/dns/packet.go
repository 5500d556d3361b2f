package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// packetReader reads packets and tells by which device each has come.
type packetReader struct {
	conn   *net.UDPConn
	bridge string
	oob    []byte

	index   int       // of the bridge, as far as known
	checked time.Time // when it was asked for
}

func newPacketReader(p net.PacketConn, bridge string) (*packetReader, error) {
	conn, ok := p.(*net.UDPConn)
	if !ok {
		return nil, fmt.Errorf("cannot serve names on %v: it is no UDP socket", p.LocalAddr())
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) })
	if err := errors.Join(err, optErr); err != nil {
		return nil, fmt.Errorf("cannot tell where packets come from: %w", err)
	}
	return &packetReader{conn: conn, bridge: bridge, oob: make([]byte, 128)}, nil
}

// read returns one packet, its sender, and whether it came through the bridge.
func (r *packetReader) read(buf []byte) (n int, from netip.AddrPort, bridged bool, err error) {
	n, oobn, _, from, err := r.conn.ReadMsgUDPAddrPort(buf, r.oob)
	if err != nil {
		return 0, netip.AddrPort{}, false, err
	}
	return n, from, r.bridge == "" || r.isBridge(deviceOf(r.oob[:oobn])), nil
}

// isBridge asks for the bridge's number again when another one comes, since the
// bridge may have been made anew; but not for every packet of a stranger.
func (r *packetReader) isBridge(index int) bool {
	if index != 0 && index == r.index {
		return true
	}
	if now := time.Now(); now.Sub(r.checked) > time.Second {
		r.index, r.checked = deviceIndex(r.bridge), now
	}
	return index != 0 && index == r.index
}

// deviceOf reads the number of the device from struct in_pktinfo, 0 if it is
// not told.
func deviceOf(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 4 {
			return int(int32(binary.NativeEndian.Uint32(m.Data)))
		}
	}
	return 0
}

// deviceIndex returns 0 for a device that does not exist. It asks by ioctl:
// bangerd has no netlink.
func deviceIndex(name string) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req) != nil {
		return 0
	}
	return int(req.Uint32())
}
