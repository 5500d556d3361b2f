//go:build lab

package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/installed"
	"banger/internal/paths"
)

// Between launch and handover the VMM can shout as it likes: nothing is heard
// before the port is pinned, and then only what is pinned.
func TestLabNoPacketBeforeItsPortIsPinned(t *testing.T) {
	g := newGuest(t)
	g.timed("bridge.ensure", func() error { _, err := g.c.EnsureBridge(t.Context()); return err })
	ears := newCapture(t, g.record.Bridge)
	stop, done := make(chan struct{}), make(chan int)
	wrong := udp(g.mac, g.host().mac, at(netip.MustParseAddr("172.16.99.99"), 1), at(g.host().ip, 53), "wrong-address")
	wrongMAC := udp(net.HardwareAddr{2, 1, 1, 1, 1, 1}, g.host().mac, at(g.ip, 1), at(g.host().ip, 53), "wrong-mac")
	go func() {
		sent := 0
		for {
			select {
			case <-stop:
				done <- sent
				return
			default:
				if g.write(wrong) == nil { // fails while the tap is down
					sent++
				}
				_ = g.write(wrongMAC)
			}
		}
	}()
	g.handover()
	g.send(g.toHost(53, "right"))
	if heard := ears.await(t, "wrong-address", "wrong-mac", "right"); heard != "right" {
		t.Errorf("%s was heard", heard)
	}
	close(stop)
	if sent := <-done; sent == 0 {
		t.Error("nothing wrong was sent")
	}
	g.send(g.toHost(53, "end-of-test"))
	if heard := ears.await(t, "wrong-address", "wrong-mac", "end-of-test"); heard != "end-of-test" {
		t.Errorf("%s was heard", heard)
	}
	g.must(g.c.Handover(t.Context(), g.id)) // again is fine
	g.timed("bridge.ensure", func() error { _, err := g.c.EnsureBridge(t.Context()); return err })
}

func TestLabPins(t *testing.T) {
	g := newGuest(t)
	g.handover()
	h := g.host()
	ears := newCapture(t, g.record.Bridge)
	stranger, strangerIP := net.HardwareAddr{2, 0xfc, 9, 9, 9, 9}, netip.MustParseAddr("172.16.200.1")
	tag := func(f []byte) []byte { return append(bytes.Clone(f), "bad-frame"...) }
	good := g.toHost(53, "good-frame")
	vlan := append(bytes.Clone(good[:12]), append([]byte{0x81, 0, 0, 5}, good[12:]...)...)
	for name, bad := range map[string][]byte{
		"MAC":             udp(stranger, h.mac, at(g.ip, 1), at(h.ip, 53), "bad-frame"),
		"address":         udp(g.mac, h.mac, at(strangerIP, 1), at(h.ip, 53), "bad-frame"),
		"host's address":  udp(g.mac, h.mac, at(h.ip, 1), at(h.ip, 53), "bad-frame"),
		"ARP MAC":         tag(arp(1, g.mac, stranger, g.ip, h.mac, h.ip)),
		"ARP ether MAC":   tag(arp(1, stranger, g.mac, g.ip, h.mac, h.ip)),
		"ARP address":     tag(arp(1, g.mac, g.mac, strangerIP, h.mac, h.ip)),
		"ARP for gateway": tag(arp(2, g.mac, g.mac, h.ip, broadcast, g.ip)),
		"ARP probe":       tag(arp(1, g.mac, g.mac, netip.IPv4Unspecified(), h.mac, g.ip)),
		"RARP":            tag(arp(3, g.mac, g.mac, g.ip, h.mac, h.ip)),
		"IPv6":            ether(h.mac, g.mac, unix.ETH_P_IPV6, append(make([]byte, 60), "bad-frame"...)),
		"VLAN":            bytes.Replace(vlan, []byte("good-frame"), []byte("bad-frame "), 1),
		"unknown type":    ether(h.mac, g.mac, 0x88cc, append(make([]byte, 60), "bad-frame"...)),
		"spanning tree":   ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, g.mac, 38, append(make([]byte, 60), "bad-frame"...)),
	} {
		g.send(bad, good)
		if ears.await(t, "bad-frame", "good-frame") != "good-frame" {
			t.Errorf("wrong %s: it passed", name)
			ears.await(t, "good-frame")
		}
	}
	g.send(arp(1, g.mac, g.mac, g.ip, h.mac, h.ip)) // its own ARP is answered
	g.send(append(arp(1, g.mac, g.mac, g.ip, h.mac, h.ip), "own-arp"...))
	ears.await(t, "own-arp")
}

func TestLabGroups(t *testing.T) {
	a, b, c := newGuest(t), newGuest(t), newGuest(t)
	for _, g := range []*netGuest{a, b, c} {
		g.handover()
	}
	talk := func(to *netGuest, word string) [][]byte {
		return [][]byte{
			udp(a.mac, to.mac, at(a.ip, 1), at(to.ip, 2), word+"-unicast"),
			udp(a.mac, broadcast, at(a.ip, 1), at(netip.MustParseAddr("255.255.255.255"), 2), word+"-broadcast"),
			udp(a.mac, a.host().mac, at(a.ip, 1), at(to.ip, 2), word+"-routed"),
		}
	}
	apply := func(guests ...helper.GuestNetwork) {
		t.Helper()
		a.timed("network.apply", func() error { return a.c.ApplyNetwork(t.Context(), helper.NetworkRequest{Guests: guests}) })
	}
	a.send(talk(b, "alone")...)
	apply(helper.GuestNetwork{ID: a.id, Group: "blue"})
	a.send(talk(b, "half")...)
	apply(helper.GuestNetwork{ID: b.id, Group: "blue"}, helper.GuestNetwork{ID: c.id, Group: "green"})
	a.send(talk(c, "other")...)
	a.send(talk(b, "same")...)
	if got := b.await("alone", "half", "other-unicast", "same"); got != "same" {
		t.Errorf("b heard %s", got)
	}
	apply(helper.GuestNetwork{ID: b.id})
	a.send(talk(b, "left")...)
	// What the host itself sends still comes, behind all else.
	for _, g := range []*netGuest{b, c} {
		g.hostSays("from-the-host")
		if got := g.await("alone", "half", "other", "left", "-routed", "from-the-host"); got != "from-the-host" {
			t.Errorf("%s heard %s", g.id, got)
		}
	}
	a.must(a.c.ApplyNetwork(t.Context(), helper.NetworkRequest{Whole: true, Guests: []helper.GuestNetwork{{ID: a.id, Group: "red"}, {ID: c.id, Group: "red"}}}))
	a.send(talk(c, "now")...)
	c.await("now-unicast")
}

func (g *netGuest) hostSays(word string) {
	g.t.Helper()
	conn, err := net.Dial("udp", at(g.ip, 7).String())
	g.must(err)
	_, err = conn.Write([]byte(word))
	g.must(errors.Join(err, conn.Close()))
}

func listenUDP(t *testing.T, address string) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func hear(t *testing.T, c net.PacketConn, wait time.Duration) (string, net.Addr) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, 2048)
	n, from, err := c.ReadFrom(buf)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return string(buf[:n]), from
}

// Of the host a guest reaches DNS and answers, on no address anything else.
func TestLabHostServices(t *testing.T) {
	g := newGuest(t)
	g.handover()
	h := g.host()
	// The installed bangerd answers there; this test wants to hear the questions.
	t.Cleanup(func() { run(t, "systemctl", "start", "banger-dns.socket", "bangerd.service") })
	run(t, "systemctl", "stop", "bangerd.service", "banger-dns.socket")
	secret := listenUDP(t, "0.0.0.0:9999")
	dns := listenUDP(t, at(h.ip, 53).String())
	addresses, err := net.InterfaceAddrs()
	g.must(err)
	for _, a := range addresses {
		prefix, err := netip.ParsePrefix(a.String())
		if err == nil && prefix.Addr().Is4() {
			g.send(udp(g.mac, h.mac, at(g.ip, 4000), at(prefix.Addr(), 9999), "to "+prefix.String()),
				udp(g.mac, h.mac, at(g.ip, 4000), at(prefix.Addr(), 53), "dns at "+prefix.String()))
		}
	}
	g.send(g.toHost(53, "question"))
	for {
		word, _ := hear(t, dns, 10*time.Second)
		if word == "question" {
			break
		}
		if word != "dns at "+g.record.Network {
			t.Fatalf("DNS heard %q", word)
		}
	}
	if word, _ := hear(t, secret, time.Millisecond); word != "" {
		t.Errorf("the service heard %q", word)
	}
	// Answers to what the host asked, and to nothing else.
	asker := listenUDP(t, at(h.ip, 0).String())
	_, err = asker.WriteTo([]byte("are you there"), net.UDPAddrFromAddrPort(at(g.ip, 7000)))
	g.must(err)
	g.await("are you there")
	port := uint16(asker.LocalAddr().(*net.UDPAddr).Port)
	g.send(udp(g.mac, h.mac, at(g.ip, 7001), at(h.ip, port), "not asked"), udp(g.mac, h.mac, at(g.ip, 7000), at(h.ip, port), "yes"))
	if word, _ := hear(t, asker, 10*time.Second); word != "yes" {
		t.Errorf("answer %q", word)
	}
}

// outside is a network namespace behind the host.
func outside(t *testing.T) net.PacketConn {
	t.Helper()
	name := "banger-test-out"
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	run(t, "ip", "link", "add", "bt-host", "type", "veth", "peer", "name", "bt-out", "netns", name)
	run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "bt-host")
	run(t, "ip", "link", "set", "bt-host", "up")
	run(t, "ip", "-n", name, "addr", "add", "192.0.2.2/24", "dev", "bt-out")
	run(t, "ip", "-n", name, "link", "set", "bt-out", "up")
	ns, err := os.Open("/run/netns/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var c net.PacketConn
	if err := inNetNS(ns, func(*os.File) error { c, err = net.ListenPacket("udp4", "192.0.2.2:5000"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (g *netGuest) toOutside(word string) []byte {
	return udp(g.mac, g.host().mac, at(g.ip, 4000), netip.MustParseAddrPort("192.0.2.2:5000"), word)
}

func (g *netGuest) nat(on bool) {
	g.t.Helper()
	g.timed("network.apply", func() error {
		return g.c.ApplyNetwork(g.t.Context(), helper.NetworkRequest{Guests: []helper.GuestNetwork{{ID: g.id, NAT: on}}})
	})
}

func TestLabNAT(t *testing.T) {
	out := outside(t)
	g := newGuest(t)
	g.handover()
	g.send(g.toOutside("without"))
	g.nat(true)
	g.send(g.toOutside("with"))
	word, from := hear(t, out, 10*time.Second)
	if word != "with" || !strings.HasPrefix(from.String(), "192.0.2.1:") {
		t.Fatalf("%q from %v", word, from)
	}
	_, err := out.WriteTo([]byte("answer"), from)
	g.must(err)
	g.await("answer")
	// What others redirect to, as Docker does what it publishes, is no way round.
	t.Cleanup(func() { run(t, "nft", "delete", "table", "ip", "banger_test") })
	run(t, "nft", "add table ip banger_test; add chain ip banger_test pre { type nat hook prerouting priority dstnat; }; add rule ip banger_test pre udp dport 9998 dnat to 192.0.2.2:5000")
	g.send(g.toHost(9998, "published by the host"),
		udp(g.mac, g.host().mac, at(g.ip, 4000), netip.MustParseAddrPort("192.0.2.7:9998"), "redirected"))
	g.send(g.toOutside("straight"))
	if word, _ := hear(t, out, 10*time.Second); word != "straight" {
		t.Errorf("outside heard %q", word)
	}
	// Nobody comes in from outside by himself.
	run(t, "ip", "-n", "banger-test-out", "route", "add", netip.MustParsePrefix(g.record.Network).Masked().String(), "via", "192.0.2.1")
	_, err = out.WriteTo([]byte("intruder"), net.UDPAddrFromAddrPort(at(g.ip, 22)))
	g.must(err)
	g.nat(false)
	g.send(g.toOutside("cut")) // a connection that was open
	g.nat(true)
	g.send(g.toOutside("again"))
	if word, _ := hear(t, out, 10*time.Second); word != "again" {
		t.Errorf("outside heard %q", word)
	}
	g.hostSays("from-the-host")
	if got := g.await("intruder", "from-the-host"); got != "from-the-host" {
		t.Errorf("the guest heard an %s", got)
	}
}

// A firewall restart, a deleted or emptied bridge: mended within a second.
func TestLabMended(t *testing.T) {
	g := newGuest(t)
	g.handover()
	g.nat(true)
	t.Cleanup(func() { run(t, "systemctl", "restart", "nftables.service") }) // the lab's own rules
	bridge := g.record.Bridge
	for _, foul := range [][]string{
		{"nft", "flush", "ruleset"},
		{"nft", "delete", "table", "bridge", "banger"},
		{"nft", "flush", "chain", "inet", "banger", "to_host"},
		{"nft", "flush", "set", "inet", "banger", "nat"},
		{"systemctl", "restart", "nftables.service"},
		{"ip", "link", "del", bridge},
		{"ip", "link", "set", bridge, "down"},
		{"ip", "addr", "flush", "dev", bridge},
	} {
		want, count := labState(t, g), g.objects()
		run(t, foul...)
		start := time.Now()
		for g.objects() != count {
			if time.Since(start) > sudden {
				t.Fatalf("%q: %s, want %s", foul, g.objects(), count)
			}
			time.Sleep(time.Millisecond) // the helper is timed; nothing tells when it is done
		}
		t.Logf("%-40s mended %4d ms after its end", strings.Join(foul, " "), time.Since(start).Milliseconds())
		if diff := cmp.Diff(want, labState(t, g)); diff != "" {
			t.Errorf("%q: %s", foul, diff)
		}
		ears := newCapture(t, bridge)
		g.send(udp(g.mac, g.host().mac, at(netip.MustParseAddr("172.16.99.99"), 1), at(g.host().ip, 53), "wrong"), g.toHost(53, "right"))
		if ears.await(t, "wrong", "right") != "right" {
			t.Errorf("%q: not pinned", foul)
		}
	}
}

// objects counts what must be there, quickly.
func (g *netGuest) objects() string {
	var rules, elements int
	for _, family := range tableFamilies {
		r, err := listRules(family, tableName)
		if err == nil {
			rules += len(r)
		}
	}
	for _, set := range []element{{unix.NFPROTO_BRIDGE, "ports", "", ""}, {unix.NFPROTO_BRIDGE, "pins", "", ""}, {unix.NFPROTO_INET, "nat", "", ""}} {
		r, err := ask(unix.NETLINK_NETFILTER, nftMessage(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, set.family,
			attr(unix.NFTA_SET_ELEM_LIST_TABLE, cString(tableName)), attr(unix.NFTA_SET_ELEM_LIST_SET, cString(set.set))))
		for _, list := range r {
			if err == nil && find(list.body[4:], unix.NFTA_SET_ELEM_LIST_ELEMENTS, unix.NFTA_LIST_ELEM) != nil {
				elements++
			}
		}
	}
	bridge, err := linkByName(g.record.Bridge)
	port, portErr := linkByName(tapName(g.id))
	joined := err == nil && portErr == nil && port.master == bridge.index && port.up && bridge.up
	addresses := 0
	if i, err := net.InterfaceByName(g.record.Bridge); err == nil {
		a, _ := i.Addrs()
		addresses = len(a)
	}
	return fmt.Sprintf("%d rules, %d elements, joined %v, %d addresses", rules, elements, joined, addresses)
}

// labState is everything of the network that must be as it was, without numbers
// that a new object has.
func labState(t *testing.T, g *netGuest) string {
	out, err := exec.CommandContext(t.Context(), "sh", "-c", `nft list table bridge banger; nft list table inet banger
		ip -o addr show dev "$1" | grep -o 'inet .* brd'; ip -o -d link show master "$1" | grep -o 'tap[^:]*:\|isolated o[nf]*\|learning o[nf]*\|locked o[nf]*\|,UP'
		ip -o link show "$1" | grep -o ',UP\|link/ether [0-9a-f:]*'; bridge fdb show dev "$2" | grep static`, "sh", g.record.Bridge, tapName(g.id)).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

func TestLabLeavesNoPort(t *testing.T) {
	g := newGuest(t)
	g.handover()
	g.must(g.c.ApplyNetwork(t.Context(), helper.NetworkRequest{Guests: []helper.GuestNetwork{{ID: g.id, NAT: true, Group: "g"}}}))
	if left := strings.Join(g.left(), " "); !strings.Contains(left, "tap") || !strings.Contains(left, "element") || !strings.Contains(left, "nat") {
		t.Fatalf("the count sees only %q", left)
	}
	g.must(unix.Kill(g.pid, unix.SIGKILL))
	g.gone(sudden)
	if err := g.c.ApplyNetwork(t.Context(), helper.NetworkRequest{Guests: []helper.GuestNetwork{{ID: g.id, NAT: true}}}); code(err) != api.CodeConflict {
		t.Errorf("apply to a VM that ended: %v", err)
	}
	if left := g.left(); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

func TestLabOtherFirewalls(t *testing.T) {
	out := outside(t)
	g := newGuest(t)
	g.handover()
	g.nat(true)
	warnings := func() string {
		n, err := g.c.EnsureBridge(t.Context())
		g.must(err)
		return strings.Join(n.Warnings, "\n")
	}
	if w := warnings(); w != "" {
		t.Errorf("warnings %q", w)
	}
	t.Cleanup(func() { run(t, "nft", "flush", "ruleset"); run(t, "systemctl", "restart", "nftables.service") })
	run(t, "nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; add chain ip filter INPUT { type filter hook input priority 0; policy drop; }; add rule ip filter INPUT tcp dport 22 accept; add rule ip filter INPUT ct state established accept")
	if w := warnings(); !strings.Contains(w, "FORWARD") || !strings.Contains(w, "INPUT") {
		t.Errorf("warnings %q", w)
	}
	// As Docker has it.
	run(t, "nft", "flush chain ip filter INPUT; delete chain ip filter INPUT; add chain ip filter DOCKER-USER; add rule ip filter FORWARD jump DOCKER-USER")
	if w := warnings(); !strings.Contains(w, "Docker") {
		t.Errorf("warnings %q", w)
	}
	g.send(g.toOutside("through"))
	word, from := hear(t, out, 10*time.Second)
	if word != "through" {
		t.Errorf("outside heard %q", word)
	}
	_, err := out.WriteTo([]byte("answer"), from)
	g.must(err)
	g.await("answer")
	if n := strings.Count(run(t, "nft", "list", "chain", "ip", "filter", "DOCKER-USER"), g.record.Bridge); n != 4 {
		t.Errorf("%d rules in Docker's chain", n)
	}
}

// The real Firecracker, in its jail, opens tap0 and keeps it over the move.
func TestLabFirecrackerOpensTheTap(t *testing.T) {
	l := newLife(t)
	l.attach()
	l.launch()
	l.configure()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.root+paths.JailAPI)
	}}}
	body := strings.NewReader(`{"iface_id": "eth0", "guest_mac": "02:fc:ac:10:00:02", "host_dev_name": "tap0"}`)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://vm/network-interfaces/eth0", body)
	l.must(err)
	answer, err := client.Do(r)
	l.must(err)
	l.must(answer.Body.Close())
	if answer.StatusCode != http.StatusNoContent {
		t.Fatalf("Firecracker says %s", answer.Status)
	}
	l.must(l.c.Handover(t.Context(), l.id))
	awaitForwarding(t, l.id)
	i, err := net.InterfaceByName(tapName(l.id))
	l.must(err)
	if i.Flags&net.FlagRunning == 0 { // it has a carrier while somebody has it open
		t.Errorf("%v", i.Flags)
	}
	l.must(unix.Kill(l.pid, unix.SIGKILL))
	l.gone(sudden)
}

// Names of the zone are asked of the bridge, also after a restart of resolved or
// of the bridge.
func TestLabResolver(t *testing.T) {
	g := newGuest(t)
	g.handover()
	told := func() bool {
		out, err := exec.CommandContext(t.Context(), "resolvectl", "status", g.record.Bridge).CombinedOutput()
		return err == nil && strings.Contains(string(out), "~vm") && strings.Contains(string(out), "-DefaultRoute") &&
			strings.Contains(string(out), g.host().ip.String())
	}
	if !told() {
		t.Errorf("not told: %s", run(t, "resolvectl", "status", g.record.Bridge))
	}
	for _, foul := range []string{"ip link del " + g.record.Bridge,
		"systemctl stop systemd-resolved; rm -f /run/systemd/resolve/netif/*; systemctl start systemd-resolved"} {
		run(t, "sh", "-c", foul)
		for start := time.Now(); !told(); time.Sleep(10 * time.Millisecond) { // resolved tells nobody
			if time.Since(start) > 3*sudden {
				t.Fatalf("%s: not told", foul)
			}
		}
	}
}

// A helper that is restarted between launch and handover gets the namespace
// back from systemd.
func TestLabNamespaceOutlivesTheHelper(t *testing.T) {
	g := newGuest(t)
	run(t, "systemctl", "restart", "banger-helper.service")
	run(t, "systemctl", "kill", "--signal=KILL", "banger-helper.service")
	for { // until systemd has started it again
		if _, err := g.c.Check(t.Context()); err == nil {
			break
		} else if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
	g.handover()
	ears := newCapture(t, g.record.Bridge)
	g.send(g.toHost(53, "right"))
	ears.await(t, "right")
}

// A bridge that somebody else made is neither taken over nor, later, removed.
func TestLabForeignBridgeIsKept(t *testing.T) {
	l := newLife(t)
	const name = "br-foreign"
	theirs := net.HardwareAddr{2, 1, 2, 3, 4, 5}
	l.must(routeChange(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHeader(0, 0, 0), attr(unix.IFLA_IFNAME, cString(name)),
		attr(unix.IFLA_ADDRESS, theirs), nested(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, cString("bridge")))))
	before, err := linkByName(name)
	l.must(err)
	defer func() { l.must(routeChange(unix.RTM_DELLINK, unix.NLM_F_ACK, linkHeader(before.index, 0, 0))) }()
	record := l.record
	record.Bridge, record.Network = name, "10.213.77.1/24"
	if _, err := ensureBridge(record); code(err) != api.CodeConflict {
		t.Errorf("got %v", err)
	}
	after, err := linkByName(name)
	if l.must(err); !reflect.DeepEqual(before, after) || after.isOurs(installed.GuestMAC(record.Gateway())) {
		t.Errorf("it was %+v and is %+v", before, after)
	}
	_, err = l.c.EnsureBridge(t.Context())
	l.must(err)
	if own, err := linkByName(l.record.Bridge); err != nil || own.alias != bridgeAlias {
		t.Errorf("ours is %+v, %v", own, err)
	}
}
