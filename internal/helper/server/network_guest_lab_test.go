//go:build lab

package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/installed"
)

// netGuest is a VM whose network card is this test: it opens the tap as the VMM
// would, before the helper moves it, and answers ARP as a kernel would.
type netGuest struct {
	*life
	mac net.HardwareAddr
	ip  netip.Addr
	tap *os.File
	got chan []byte // frames, without those about ARP
}

const vnetHeader = 10 // what IFF_VNET_HDR puts before each frame

func newGuest(t *testing.T) *netGuest {
	t.Helper()
	l := newLife(t)
	l.attach()
	l.launch()
	l.configure()
	address, ok := l.record.GuestAddress(l.slot.Slot)
	if !ok {
		t.Fatal("no address")
	}
	g := &netGuest{life: l, ip: address.Addr(), mac: installed.GuestMAC(address.Addr()), got: make(chan []byte, 1024)}
	g.tap = openAsVMM(t, l.pid, l.slot.UID)
	t.Cleanup(func() { g.tap.Close() })
	return g
}

// openAsVMM opens tap0 with the VMM's uid, which has no rights, in the VMM's
// namespace.
func openAsVMM(t *testing.T, pid, uid int) *os.File {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is thrown away
		done <- func() (r result) {
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err != nil {
				return result{err: err}
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return result{err: err}
			}
			// The raw call changes this thread alone.
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				return result{err: e}
			}
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return result{err: err}
			}
			ifr, err := unix.NewIfreq(nicName)
			if err != nil {
				return result{err: err}
			}
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			return result{fd, unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)}
		}()
	}()
	r := <-done
	if r.err != nil {
		t.Fatalf("as the VMM: %v", r.err)
	}
	return os.NewFile(uintptr(r.fd), "tap")
}

func (g *netGuest) handover() {
	g.t.Helper()
	g.timed("vm.handover", func() error { return g.c.Handover(g.t.Context(), g.id) })
	awaitForwarding(g.t, g.id)
	go g.read()
}

// awaitForwarding waits until the bridge has noticed the carrier of the VM's
// tap, which the kernel tells it up to a second late. Until then it drops.
func awaitForwarding(t *testing.T, id string) {
	t.Helper()
	const forwarding = "3" // BR_STATE_FORWARDING
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	late := time.After(10 * time.Second)
	for {
		raw, err := os.ReadFile("/sys/class/net/" + tapName(id) + "/brport/state")
		if err == nil && strings.TrimSpace(string(raw)) == forwarding {
			return
		}
		select {
		case <-again.C:
		case <-late:
			t.Fatalf("the port does not forward: state %q, %v", raw, err)
		}
	}
}

func (g *netGuest) read() {
	buf := make([]byte, 4096)
	for {
		n, err := g.tap.Read(buf)
		if err != nil {
			return // the tap is gone
		}
		f := bytes.Clone(buf[vnetHeader:n])
		if len(f) >= 42 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_ARP {
			if binary.BigEndian.Uint16(f[20:]) == 1 && bytes.Equal(f[38:42], g.ip.AsSlice()) {
				_ = g.write(arp(2, g.mac, g.mac, g.ip, net.HardwareAddr(f[22:28]), addr4(f[28:32])))
			}
			continue
		}
		select {
		case g.got <- f:
		default:
		}
	}
}

func addr4(b []byte) netip.Addr { a, _ := netip.AddrFromSlice(b); return a }

func (g *netGuest) write(frame []byte) error {
	_, err := g.tap.Write(append(make([]byte, vnetHeader), frame...))
	return err
}

func (g *netGuest) send(frames ...[]byte) {
	g.t.Helper()
	for _, f := range frames {
		g.must(g.write(f))
	}
}

// await returns the first frame that came to the guest with one of the words.
func (g *netGuest) await(words ...string) string {
	g.t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case f := <-g.got:
			for _, w := range words {
				if bytes.Contains(f, []byte(w)) {
					return w
				}
			}
		case <-timeout:
			g.t.Fatalf("%q did not come to the guest", words)
		}
	}
}

func ether(dst, src net.HardwareAddr, typ uint16, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(bytes.Clone(dst), src...), typ), body...)
}

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// arp is a frame by etherSrc that says that mac has ip.
func arp(op uint16, etherSrc, mac net.HardwareAddr, ip netip.Addr, dstMAC net.HardwareAddr, dst netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, byte(op)}
	b = append(append(b, mac...), ip.AsSlice()...)
	b = append(append(b, dstMAC...), dst.AsSlice()...)
	to := dstMAC
	if op == 1 {
		to = broadcast
	}
	return ether(to, etherSrc, unix.ETH_P_ARP, append(b, make([]byte, 18)...))
}

func udp(srcMAC, dstMAC net.HardwareAddr, src, dst netip.AddrPort, payload string) []byte {
	u := binary.BigEndian.AppendUint16(nil, src.Port())
	u = binary.BigEndian.AppendUint16(u, dst.Port())
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(payload)))
	u = append(append(u, 0, 0), payload...) // no checksum
	ip := []byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0}
	ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(u)))
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return ether(dstMAC, srcMAC, unix.ETH_P_IP, append(ip, u...))
}

func at(ip netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(ip, port) }

// host is the lab's own side of the network.
type host struct {
	ip  netip.Addr
	mac net.HardwareAddr
}

func (l *life) host() host {
	prefix := netip.MustParsePrefix(l.record.Network)
	return host{prefix.Addr(), installed.GuestMAC(prefix.Addr())}
}

func (g *netGuest) toHost(port uint16, payload string) []byte {
	h := g.host()
	return udp(g.mac, h.mac, at(g.ip, 4000), at(h.ip, port), payload)
}

// capture hears the frames that come in on a device, or on all.
type capture struct{ f *os.File }

func newCapture(t *testing.T, device string) capture {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0x0300) // ETH_P_ALL
	if err == nil {
		var i *net.Interface
		if i, err = net.InterfaceByName(device); err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: i.Index})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	c := capture{os.NewFile(uintptr(fd), "packet")}
	t.Cleanup(func() { c.f.Close() })
	return c
}

// await returns the first word that shows.
func (c capture) await(t *testing.T, words ...string) string {
	t.Helper()
	_ = c.f.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 4096)
	for {
		n, err := c.f.Read(buf)
		if err != nil {
			t.Fatalf("%q was not heard: %v", words, err)
		}
		for _, w := range words {
			if bytes.Contains(buf[:n], []byte(w)) {
				return w
			}
		}
	}
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
	return string(out)
}
