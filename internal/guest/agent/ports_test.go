package agent

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/guest"
)

const socketHead = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

func socketLine(local, remote, state, inode string) string {
	return "   0: " + local + " " + remote + " " + state + " 00000000:00000000 00:00000000 00000000     0        0 " + inode + " 1 0000000000000000 100 0 0 10 0\n"
}

func TestParseSockets(t *testing.T) {
	table := socketHead +
		socketLine("0100007F:1F90", "00000000:0000", "0A", "11") +
		socketLine("00000000:0016", "00000000:0000", "0A", "12") +
		socketLine("0100007F:1F91", "0100007F:A000", "01", "13") + // connected
		socketLine("0100007F:0000", "00000000:0000", "0A", "14") + // no port
		socketLine("xyz:1F90", "00000000:0000", "0A", "15") +
		socketLine("0100007F:1F9000", "00000000:0000", "0A", "16") +
		"short line\n" +
		socketLine("B80D0120000000000000000001000000:0050", "00000000000000000000000000000000:0000", "0A", "17")
	got, err := parseSockets(strings.NewReader(table), "tcp", "0A")
	if err != nil {
		t.Fatal(err)
	}
	var ports []string
	for _, s := range got {
		ports = append(ports, s.Address+" "+strconv.Itoa(s.Port.Port)+" "+s.inode)
	}
	if want := []string{"127.0.0.1 8080 11", "0.0.0.0 22 12", "2001:db8::1 80 17"}; !slices.Equal(ports, want) {
		t.Errorf("got %q, want %q", ports, want)
	}
}

func TestNamePortsSortsAndJoins(t *testing.T) {
	s := func(protocol, addr string, port int, inode string) boundSocket {
		return boundSocket{guest.Port{Protocol: protocol, Address: addr, Port: port}, inode}
	}
	got := namePorts([]boundSocket{
		s("udp", "0.0.0.0", 53, "1"), s("tcp", "::", 80, "2"), s("tcp", "0.0.0.0", 80, "3"),
		s("tcp", "0.0.0.0", 80, "4"), s("tcp", "0.0.0.0", 22, "5"),
	}, map[string]string{"4": "nginx", "5": "sshd"})
	want := []guest.Port{
		{Protocol: "tcp", Address: "0.0.0.0", Port: 22, Process: "sshd"},
		{Protocol: "tcp", Address: "0.0.0.0", Port: 80, Process: "nginx"},
		{Protocol: "tcp", Address: "::", Port: 80},
		{Protocol: "udp", Address: "0.0.0.0", Port: 53},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	many := make([]boundSocket, 0, 2*maxPorts)
	for i := range 2 * maxPorts {
		many = append(many, s("tcp", "0.0.0.0", i+1, ""))
	}
	if n := len(namePorts(many, nil)); n != maxPorts {
		t.Errorf("%d ports are told of", n)
	}
}

func TestListPortsOfThisProcess(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := os.Stat("/proc/self/net/tcp"); err != nil {
		t.Skip("this kernel does not tell")
	}
	ports, err := listPorts("/proc")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.Addr().String())
	for _, p := range ports {
		if p.Protocol == "tcp" && p.Address == addr.Addr().String() && p.Port == int(addr.Port()) {
			if p.Process == "" {
				t.Error("it has no name")
			}
			return
		}
	}
	t.Errorf("%v is not among %v", addr, ports)
}

func FuzzParseSockets(f *testing.F) {
	f.Add(socketHead + socketLine("0100007F:1F90", "00000000:0000", "0A", "11"))
	f.Fuzz(func(t *testing.T, table string) {
		found, err := parseSockets(strings.NewReader(table), "tcp", "0A")
		for _, s := range found {
			if _, addrErr := netip.ParseAddr(s.Address); addrErr != nil || s.Port.Port < 1 || s.Port.Port > 65535 {
				t.Errorf("%+v was read, %v", s, err)
			}
		}
	})
}
