package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/installed"
)

// link is a network device.
type link struct {
	index  int32
	up     bool
	kind   string // "bridge", "tun", …
	mac    net.HardwareAddr
	alias  string
	master int32 // index of its bridge, 0 without
}

// linkHeader is an ifinfomsg.
func linkHeader(index int32, flags, change uint32) []byte {
	b := make([]byte, 4, unix.SizeofIfInfomsg)
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// linkByName finds a device; unix.ENODEV if there is none.
func linkByName(name string) (link, error) {
	replies, err := ask(unix.NETLINK_ROUTE, message(unix.RTM_GETLINK, unix.NLM_F_ACK, linkHeader(0, 0, 0), attr(unix.IFLA_IFNAME, cString(name))))
	if err != nil {
		return link{}, fmt.Errorf("cannot look up network device %s: %w", name, err)
	}
	for _, r := range replies {
		if l, _, ok := parseLink(r); ok {
			return l, nil
		}
	}
	return link{}, fmt.Errorf("cannot look up network device %s: %w", name, errShort)
}

func parseLink(r reply) (l link, name string, ok bool) {
	if r.typ != unix.RTM_NEWLINK && r.typ != unix.RTM_DELLINK || len(r.body) < unix.SizeofIfInfomsg {
		return link{}, "", false
	}
	b := r.body[unix.SizeofIfInfomsg:]
	l = link{
		index: int32(binary.NativeEndian.Uint32(r.body[4:])),
		up:    binary.NativeEndian.Uint32(r.body[8:])&unix.IFF_UP != 0,
		kind:  findText(b, unix.IFLA_LINKINFO, unix.IFLA_INFO_KIND),
		mac:   bytes.Clone(find(b, unix.IFLA_ADDRESS)),
		alias: findText(b, unix.IFLA_IFALIAS),
	}
	if m := find(b, unix.IFLA_MASTER); len(m) == 4 {
		l.master = int32(binary.NativeEndian.Uint32(m))
	}
	return l, findText(b, unix.IFLA_IFNAME), true
}

// bridgeAlias marks a bridge that banger made.
const bridgeAlias = "banger"

// isOurs holds for a bridge that was marked, or was about to be.
func (l link) isOurs(mac net.HardwareAddr) bool {
	return l.kind == "bridge" && (l.alias == bridgeAlias || bytes.Equal(l.mac, mac))
}

// ensureBridge makes the bridge, or mends it, and returns it. Its MAC is set,
// as else it would be the lowest of its ports' and change with them.
func ensureBridge(r installed.Record) (link, error) {
	prefix, err := netip.ParsePrefix(r.Network)
	if err != nil {
		return link{}, err
	}
	mac := installed.GuestMAC(prefix.Addr())
	l, err := linkByName(r.Bridge)
	if errors.Is(err, unix.ENODEV) {
		l, err = makeBridge(r.Bridge, mac)
	}
	if err != nil {
		return link{}, err
	}
	if !l.isOurs(mac) {
		return link{}, api.Conflict("network device %s was not made by banger", r.Bridge).
			WithHint("remove or rename it, or give banger another name: `sudo banger system install --bridge NAME`")
	}
	if err := addAddress(l.index, prefix); err != nil {
		return link{}, fmt.Errorf("cannot give %s the address %s: %w", r.Bridge, prefix, err)
	}
	if !l.up || !bytes.Equal(l.mac, mac) || l.alias != bridgeAlias {
		err := routeChange(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHeader(l.index, unix.IFF_UP, unix.IFF_UP),
			attr(unix.IFLA_ADDRESS, mac), attr(unix.IFLA_IFALIAS, []byte(bridgeAlias)))
		if err != nil {
			return link{}, fmt.Errorf("cannot set up %s: %w", r.Bridge, err)
		}
	}
	return l, nil
}

func makeBridge(name string, mac net.HardwareAddr) (link, error) {
	err := routeChange(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHeader(0, unix.IFF_UP, unix.IFF_UP),
		attr(unix.IFLA_IFNAME, cString(name)), attr(unix.IFLA_ADDRESS, mac),
		nested(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, cString("bridge")), nested(unix.IFLA_INFO_DATA,
			// The host does not look into the groups that guests join.
			attr(unix.IFLA_BR_MCAST_SNOOPING, num8(0)))))
	if err != nil {
		return link{}, fmt.Errorf("cannot make bridge %s: %w", name, err)
	}
	l, err := linkByName(name)
	if err != nil {
		return link{}, err
	}
	return l, withoutIPv6(l.index)
}

// withoutIPv6 keeps the kernel from giving the device an IPv6 address and from
// talking IPv6 on it. Where there is no IPv6 there is nothing to do.
func withoutIPv6(index int32) error {
	const noAddress = 1 // IN6_ADDR_GEN_MODE_NONE
	err := routeChange(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHeader(index, 0, 0),
		nested(unix.IFLA_AF_SPEC, nested(unix.AF_INET6, attr(unix.IFLA_INET6_ADDR_GEN_MODE, num8(noAddress)))))
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("cannot keep IPv6 from a network device: %w", err)
	}
	return nil
}

// addAddress is quiet if the address is there: no event wakes who watches.
func addAddress(index int32, prefix netip.Prefix) error {
	ip := prefix.Addr().AsSlice()
	header := append([]byte{unix.AF_INET, byte(prefix.Bits()), 0, unix.RT_SCOPE_UNIVERSE}, num32(uint32(index))...)
	last := binary.BigEndian.Uint32(ip) | (1<<(32-prefix.Bits()) - 1)
	err := routeChange(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, header,
		attr(unix.IFA_LOCAL, ip), attr(unix.IFA_ADDRESS, ip), attr(unix.IFA_BROADCAST, binary.BigEndian.AppendUint32(nil, last)))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// joinBridge makes the device a port of the bridge and only then sets it up:
// until it is, nothing passes. The port knows one MAC and learns none; locked
// means that it takes frames from that one only, also while there are no rules.
// Only ports of a group are not isolated; the rules say who may talk there.
func joinBridge(port, bridge link, mac net.HardwareAddr, grouped bool) error {
	if port.master != bridge.index {
		if err := routeChange(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHeader(port.index, 0, unix.IFF_UP), attr(unix.IFLA_MASTER, num32(uint32(bridge.index)))); err != nil {
			return fmt.Errorf("cannot join the bridge: %w", err)
		}
		if err := withoutIPv6(port.index); err != nil {
			return err
		}
	}
	if err := isolate(port, grouped); err != nil {
		return err
	}
	neighbour := append([]byte{unix.AF_BRIDGE, 0, 0, 0}, num32(uint32(port.index))...)
	neighbour = append(neighbour, append(binary.NativeEndian.AppendUint16(nil, unix.NUD_NOARP), unix.NTF_MASTER, 0)...)
	if err := routeChange(unix.RTM_NEWNEIGH, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, neighbour, attr(unix.NDA_LLADDR, mac)); err != nil {
		return fmt.Errorf("cannot tell the bridge a port's MAC: %w", err)
	}
	if err := routeChange(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHeader(port.index, unix.IFF_UP, unix.IFF_UP)); err != nil {
		return fmt.Errorf("cannot set up a port: %w", err)
	}
	return nil
}

func isolate(port link, grouped bool) error {
	alone, shared := num8(1), num8(0)
	if grouped {
		alone, shared = shared, alone
	}
	err := routeChange(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHeader(port.index, 0, 0), nested(unix.IFLA_LINKINFO,
		attr(unix.IFLA_INFO_SLAVE_KIND, cString("bridge")), nested(unix.IFLA_INFO_SLAVE_DATA,
			attr(unix.IFLA_BRPORT_ISOLATED, alone),
			attr(unix.IFLA_BRPORT_MCAST_FLOOD, shared),
			attr(unix.IFLA_BRPORT_UNICAST_FLOOD, num8(0)),
			attr(unix.IFLA_BRPORT_LEARNING, num8(0)),
			attr(unix.IFLA_BRPORT_LOCKED, num8(1)))))
	if err != nil {
		return fmt.Errorf("cannot isolate a port: %w", err)
	}
	return nil
}
