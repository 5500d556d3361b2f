package server

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// nicName is the tap's name in the VM's own namespace, the same in every VM.
const nicName = "tap0"

// tapName is 15 bytes long, as long as a device's name can be.
func tapName(id string) string { return "tap" + id }

// makeTap makes a tap that the VM's uid may open and that stays until it is
// deleted, in the namespace of the calling thread.
func makeTap(name string, uid int) error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot make a tap: %w", err)
	}
	defer f.Close()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	// As Firecracker opens it; the kernel refuses other flags then.
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	fd := int(f.Fd())
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("cannot make a tap: %w", err)
	}
	if err := errors.Join(unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)); err != nil {
		return fmt.Errorf("cannot give a tap to uid %d: %w", uid, err)
	}
	return nil
}

// moveTap takes the VM's tap out of its namespace and renames it, in one
// message: no other name is ever taken in the host. It comes there set down.
func moveTap(ns *os.File, id string) error {
	err := inNetNS(ns, func(host *os.File) error {
		l, err := linkByName(nicName)
		if err != nil {
			return err
		}
		return routeChange(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHeader(l.index, 0, unix.IFF_UP),
			attr(unix.IFLA_NET_NS_FD, num32(uint32(host.Fd()))), attr(unix.IFLA_IFNAME, cString(tapName(id))))
	})
	if err != nil {
		return fmt.Errorf("cannot move the tap of VM %s: %w", id, err)
	}
	return nil
}

// removeTap deletes the VM's tap in the host; it is fine if there is none.
func removeTap(id string) error {
	l, err := linkByName(tapName(id))
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.kind != "tun" {
		return fmt.Errorf("%s is no tap (%s) and not removed", tapName(id), l.kind)
	}
	err = routeChange(unix.RTM_DELLINK, unix.NLM_F_ACK, linkHeader(l.index, 0, 0))
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("cannot remove %s: %w", tapName(id), err)
	}
	return nil
}
