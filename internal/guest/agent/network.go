package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// cardTimeout is for a card whose driver is still looking.
const cardTimeout = 10 * time.Second

// setUpNetwork gives the guest's card its address before the image's init
// starts, and returns the card's name. It may be repeated. Afterwards there is
// nothing but this address on the card: no link-local one either.
func setUpNetwork(n guest.Network) (card string, err error) {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return "", err
	}
	link, err := findCard(mac, cardTimeout)
	if err != nil {
		return "", err
	}
	prefix, err := netip.ParsePrefix(n.Address)
	if err != nil {
		return "", err
	}
	kernel, err := openRTNetlink()
	if err != nil {
		return "", err
	}
	defer kernel.close()
	// EAFNOSUPPORT: this kernel, or this card, has no IPv6 at all.
	err = kernel.request(unix.RTM_NEWLINK, 0, noLinkLocal(link.Index))
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return "", fmt.Errorf("cannot keep IPv6 off %s: %w", link.Name, err)
	}
	const replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	if err := kernel.request(unix.RTM_NEWADDR, replace, cardAddress(link.Index, prefix)); err != nil {
		return "", fmt.Errorf("cannot give %s the address %s: %w", link.Name, prefix, err)
	}
	if err := kernel.request(unix.RTM_NEWLINK, 0, linkUp(link.Index)); err != nil {
		return "", fmt.Errorf("cannot raise %s: %w", link.Name, err)
	}
	if n.Gateway != "" {
		gateway, err := netip.ParseAddr(n.Gateway)
		if err != nil {
			return "", err
		}
		if err := kernel.request(unix.RTM_NEWROUTE, replace, defaultRoute(link.Index, gateway)); err != nil {
			return "", fmt.Errorf("cannot route through %s: %w", gateway, err)
		}
	}
	return link.Name, nil
}

// findCard waits for the card with that hardware address.
func findCard(mac net.HardwareAddr, timeout time.Duration) (net.Interface, error) {
	// The subscription comes first, so no card can appear in between.
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return net.Interface{}, fmt.Errorf("cannot watch for network cards: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_LINK - 1)}); err != nil {
		return net.Interface{}, fmt.Errorf("cannot watch for network cards: %w", err)
	}
	events := make([]byte, 8192)
	for deadline := time.Now().Add(timeout); ; {
		links, err := net.Interfaces()
		if err != nil {
			return net.Interface{}, fmt.Errorf("cannot list network cards: %w", err)
		}
		for _, l := range links {
			if bytes.Equal(l.HardwareAddr, mac) {
				return l, nil
			}
		}
		left := time.Until(deadline)
		if left <= 0 {
			return net.Interface{}, fmt.Errorf("there is no network card %s (does the guest's kernel have virtio_net?)", mac)
		}
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return net.Interface{}, fmt.Errorf("cannot wait for network cards: %w", err)
		}
		_, _, _ = unix.Recvfrom(fd, events, 0) // only the wake-up counts; EAGAIN after a timeout
	}
}

// linkMessage is struct ifinfomsg.
func linkMessage(index int, flags, change uint32) []byte {
	b := []byte{unix.AF_UNSPEC, 0, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

func linkUp(index int) []byte { return linkMessage(index, unix.IFF_UP, unix.IFF_UP) }

// noLinkLocal keeps the kernel from making a link-local address. It is no
// sysctl by name, since udev may rename the card.
func noLinkLocal(index int) []byte {
	const none = 1 // IN6_ADDR_GEN_MODE_NONE
	mode := attribute(nil, unix.IFLA_INET6_ADDR_GEN_MODE, []byte{none})
	families := attribute(nil, unix.AF_INET6, mode)
	return attribute(linkMessage(index, 0, 0), unix.IFLA_AF_SPEC, families)
}

// cardAddress is struct ifaddrmsg with an IPv4 address.
func cardAddress(index int, p netip.Prefix) []byte {
	addr := p.Addr().As4()
	b := []byte{unix.AF_INET, byte(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = attribute(b, unix.IFA_LOCAL, addr[:])
	b = attribute(b, unix.IFA_ADDRESS, addr[:])
	if p.Bits() < 31 {
		hosts := ^uint32(0) >> p.Bits()
		last := binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(addr[:])|hosts)
		b = attribute(b, unix.IFA_BROADCAST, last)
	}
	return b
}

// defaultRoute is struct rtmsg. It looks like a route of systemd-networkd, so
// that one there takes it for its own.
func defaultRoute(index int, gateway netip.Addr) []byte {
	b := []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0}
	addr := gateway.As4()
	b = attribute(b, unix.RTA_GATEWAY, addr[:])
	return attribute(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
}
