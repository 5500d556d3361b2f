package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The tests' network is a part of loopback, so guests are sockets bound to
// their addresses.
var (
	testNetwork = netip.MustParsePrefix("127.9.0.1/16")
	hostAddr    = netip.MustParseAddr("127.0.0.1")
	otter       = netip.MustParseAddr("127.9.0.2")
	heron       = netip.MustParseAddr("127.9.0.3")
	lonely      = netip.MustParseAddr("127.9.0.4")
)

func testServer(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		Table: &Table{}, Zone: "vm", Network: testNetwork, Bridge: "lo",
		MayForward: func(client netip.Addr) bool { return client == otter },
		MayResolve: func(client, target netip.Addr) bool { return client != lonely && target != lonely },
		Upstreams:  func() ([]netip.AddrPort, error) { return nil, nil },
		Log:        slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		limits:     newLimits(time.Now),
	}
	s.Table.Replace(map[string]netip.Addr{"otter": otter, "heron": heron, "lonely": lonely})
	return s
}

// serving starts s and returns its address, the same by UDP and TCP.
func serving(t *testing.T, s *Server) netip.AddrPort {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp4", "127.9.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := lc.ListenPacket(t.Context(), "udp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newPacketReader(p, s.Bridge); err != nil { // as systemd has it, before the first packet comes
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, []net.PacketConn{p}, []net.Listener{l}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

func question(t testing.TB, name string, kind dnsmessage.Type) dnsmessage.Message {
	t.Helper()
	n, err := dnsmessage.NewName(name)
	if err != nil {
		t.Fatal(err)
	}
	return dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: kind, Class: dnsmessage.ClassINET}},
	}
}

func packed(t testing.TB, m dnsmessage.Message) []byte {
	t.Helper()
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// ask sends raw from an address of loopback and returns the answer, nil for
// none.
func ask(t testing.TB, network string, from netip.Addr, to netip.AddrPort, raw []byte) []byte {
	t.Helper()
	return askFor(t, 10*time.Second, network, from, to, raw)
}

// aMoment is how long to wait for what should not come.
const aMoment = 200 * time.Millisecond

func askFor(t testing.TB, patience time.Duration, network string, from netip.Addr, to netip.AddrPort, raw []byte) []byte {
	t.Helper()
	var local net.Addr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	if network == "tcp" {
		local = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	conn, err := (&net.Dialer{LocalAddr: local}).DialContext(t.Context(), network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if network == "tcp" {
		if err := writeFramed(conn, raw); err != nil {
			t.Fatal(err)
		}
		answer, err := readFramed(conn, 1<<16)
		if err != nil {
			return nil
		}
		return answer
	}
	if _, err := conn.Write(raw); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	n, err := conn.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

func unpacked(t testing.TB, raw []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(raw); err != nil {
		t.Fatalf("answer of %d bytes: %v", len(raw), err)
	}
	return m
}

func TestAnswers(t *testing.T) {
	to := serving(t, testServer(t))
	for name, tt := range map[string]struct {
		from netip.Addr
		ask  string
		kind dnsmessage.Type
		code dnsmessage.RCode
		aa   bool
		want string // the one record
		soa  string // whose it is, where there is no record
	}{
		"host, name":              {hostAddr, "otter.vm.", dnsmessage.TypeA, 0, true, "127.9.0.2", ""},
		"host at the bridge":      {testNetwork.Addr(), "otter.vm.", dnsmessage.TypeA, 0, true, "127.9.0.2", ""},
		"capitals":                {hostAddr, "oTTer.VM.", dnsmessage.TypeA, 0, true, "127.9.0.2", ""},
		"no such record":          {hostAddr, "otter.vm.", dnsmessage.TypeAAAA, 0, true, "", "vm."},
		"no such name":            {hostAddr, "wolf.vm.", dnsmessage.TypeA, dnsmessage.RCodeNameError, true, "", "vm."},
		"below a name":            {hostAddr, "www.otter.vm.", dnsmessage.TypeA, dnsmessage.RCodeNameError, true, "", "vm."},
		"zone":                    {hostAddr, "vm.", dnsmessage.TypeSOA, 0, true, "ns.vm.", ""},
		"zone's server":           {hostAddr, "vm.", dnsmessage.TypeNS, 0, true, "ns.vm.", ""},
		"zone, other record":      {hostAddr, "vm.", dnsmessage.TypeA, 0, true, "", "vm."},
		"reverse":                 {hostAddr, "2.0.9.127.in-addr.arpa.", dnsmessage.TypePTR, 0, true, "otter.vm.", ""},
		"reverse, nobody":         {hostAddr, "9.0.9.127.in-addr.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeNameError, true, "", "9.127.in-addr.arpa."},
		"reverse, other record":   {hostAddr, "2.0.9.127.in-addr.arpa.", dnsmessage.TypeA, 0, true, "", "9.127.in-addr.arpa."},
		"reverse, not ours":       {hostAddr, "1.0.0.10.in-addr.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeRefused, false, "", ""},
		"host, other zone":        {hostAddr, "example.org.", dnsmessage.TypeA, dnsmessage.RCodeRefused, false, "", ""},
		"host, zone by its tail":  {hostAddr, "xvm.", dnsmessage.TypeA, dnsmessage.RCodeRefused, false, "", ""},
		"guest, friend":           {heron, "otter.vm.", dnsmessage.TypeA, 0, true, "127.9.0.2", ""},
		"guest, stranger":         {heron, "lonely.vm.", dnsmessage.TypeA, dnsmessage.RCodeNameError, true, "", "vm."},
		"guest, stranger's other": {heron, "lonely.vm.", dnsmessage.TypeAAAA, dnsmessage.RCodeNameError, true, "", "vm."},
		"guest, strange address":  {heron, "4.0.9.127.in-addr.arpa.", dnsmessage.TypePTR, dnsmessage.RCodeNameError, true, "", "9.127.in-addr.arpa."},
		"guest, itself":           {lonely, "lonely.vm.", dnsmessage.TypeA, 0, true, "127.9.0.4", ""},
		"guest, not let out":      {heron, "example.org.", dnsmessage.TypeA, dnsmessage.RCodeRefused, false, "", ""},
		"guest, transfer":         {otter, "example.org.", dnsmessage.TypeAXFR, dnsmessage.RCodeRefused, false, "", ""},
		"guest, let out, nowhere": {otter, "example.org.", dnsmessage.TypeA, dnsmessage.RCodeServerFailure, false, "", ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(name+" "+network, func(t *testing.T) {
				q := question(t, tt.ask, tt.kind)
				raw := ask(t, network, tt.from, to, packed(t, q))
				if raw == nil {
					t.Fatal("no answer")
				}
				m := unpacked(t, raw)
				if m.ID != q.ID || !m.Response || m.RCode != tt.code || m.Authoritative != tt.aa || m.RecursionAvailable || m.Truncated {
					t.Errorf("header is %+v", m.Header)
				}
				if len(m.Questions) != 1 || m.Questions[0] != q.Questions[0] {
					t.Errorf("question is %+v", m.Questions)
				}
				if got := strings.Join(texts(m.Answers), " "); got != tt.want {
					t.Errorf("answer is %q, want %q", got, tt.want)
				}
				var soa string
				if len(m.Authorities) > 0 {
					soa = m.Authorities[0].Header.Name.String()
				}
				if soa != tt.soa {
					t.Errorf("authority is %q, want %q", soa, tt.soa)
				}
			})
		}
	}
}

func texts(rs []dnsmessage.Resource) []string {
	var all []string
	for _, r := range rs {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			all = append(all, netip.AddrFrom4(b.A).String())
		case *dnsmessage.PTRResource:
			all = append(all, b.PTR.String())
		case *dnsmessage.NSResource:
			all = append(all, b.NS.String())
		case *dnsmessage.SOAResource:
			all = append(all, b.NS.String())
		default:
			all = append(all, fmt.Sprintf("%T", b))
		}
	}
	return all
}

func TestGuestsAreHeardThroughTheBridgeOnly(t *testing.T) {
	s := testServer(t)
	s.Bridge = "nosuchbridge0"
	to := serving(t, s)
	raw := packed(t, question(t, "otter.vm.", dnsmessage.TypeA))
	if askFor(t, aMoment, "udp", otter, to, raw) != nil {
		t.Error("a packet from elsewhere with a guest's address was answered")
	}
	if ask(t, "udp", hostAddr, to, raw) == nil {
		t.Error("the host was not answered")
	}
}

func TestStrangersGetNoAnswer(t *testing.T) {
	s := testServer(t)
	s.Network = netip.MustParsePrefix("127.10.0.1/16")
	for client, want := range map[string]bool{"192.0.2.1": false, "8.8.8.8": false, "127.0.0.1": true, "127.10.3.4": true, "::1": true, "fe80::1": false} {
		if got := s.knows(netip.MustParseAddr(client)); got != want {
			t.Errorf("%s: %v", client, got)
		}
	}
}

func TestMalformedAndOddQueries(t *testing.T) {
	to := serving(t, testServer(t))
	good := question(t, "otter.vm.", dnsmessage.TypeA)
	with := func(change func(*dnsmessage.Message)) []byte {
		m := question(t, "otter.vm.", dnsmessage.TypeA)
		change(&m)
		return packed(t, m)
	}
	opt := func(version uint32) dnsmessage.Resource {
		r := optRecord(0, false)
		r.Header.TTL = version << 16
		return r
	}
	for name, tt := range map[string]struct {
		raw  []byte
		code int // -1: no answer
	}{
		"empty":         {[]byte{}, -1},
		"half a header": {packed(t, good)[:7], -1},
		"a response":    {with(func(m *dnsmessage.Message) { m.Response = true }), -1},
		"no question":   {with(func(m *dnsmessage.Message) { m.Questions = nil }), 1},
		"two questions": {with(func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }), 1},
		"cut off":       {packed(t, good)[:20], 1},
		"an update":     {with(func(m *dnsmessage.Message) { m.OpCode = 5 }), 4},
		"chaos":         {with(func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }), 5},
		"two OPTs":      {with(func(m *dnsmessage.Message) { m.Additionals = []dnsmessage.Resource{opt(0), opt(0)} }), 1},
		"EDNS 1":        {with(func(m *dnsmessage.Message) { m.Additionals = []dnsmessage.Resource{opt(1)} }), 16},
		"EDNS 0":        {with(func(m *dnsmessage.Message) { m.Additionals = []dnsmessage.Resource{opt(0)} }), 0},
	} {
		t.Run(name, func(t *testing.T) {
			patience := 10 * time.Second
			if tt.code < 0 {
				patience = aMoment
			}
			raw := askFor(t, patience, "udp", hostAddr, to, tt.raw)
			if raw == nil {
				if tt.code >= 0 {
					t.Error("no answer")
				}
				return
			}
			m := unpacked(t, raw)
			code := int(m.RCode)
			if len(m.Additionals) > 0 {
				code = int(m.Additionals[0].Header.ExtendedRCode(m.RCode))
			}
			if code != tt.code {
				t.Errorf("code is %d, want %d", code, tt.code)
			}
			if bytes.Contains(tt.raw, []byte{0, 41}) && tt.code != 1 && len(m.Additionals) != 1 {
				t.Error("the answer has no OPT record")
			}
		})
	}
}

// upstream is a resolver of the host: it answers with records, or as answer
// does.
func upstream(t *testing.T, answer func(network string, q dnsmessage.Message) [][]byte) netip.AddrPort {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := lc.ListenPacket(t.Context(), "udp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); p.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, raw := range answer("udp", unpacked(t, buf[:n])) {
				_, _ = p.WriteTo(raw, from)
			}
		}
	}()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			raw, err := readFramed(conn, 1<<16)
			if err == nil {
				for _, raw := range answer("tcp", unpacked(t, raw)) {
					_ = writeFramed(conn, raw)
				}
			}
			_ = conn.Close()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

func many(t testing.TB, q dnsmessage.Message, n int) []byte {
	q.Response, q.RecursionAvailable = true, true
	for i := range n {
		q.Answers = append(q.Answers, dnsmessage.Resource{Header: header(q.Questions[0].Name, dnsmessage.TypeA),
			Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, byte(i)}}})
	}
	return packed(t, q)
}

func TestForward(t *testing.T) {
	s := testServer(t)
	var asked atomic.Pointer[dnsmessage.Message]
	up := upstream(t, func(network string, q dnsmessage.Message) [][]byte {
		asked.Store(&q)
		if strings.HasPrefix(q.Questions[0].Name.String(), "big.") {
			return [][]byte{many(t, q, 60)}
		}
		forged := q
		forged.ID++
		other := q
		other.Questions = question(t, "evil.org.", dnsmessage.TypeA).Questions
		if network == "tcp" {
			return [][]byte{many(t, q, 1)}
		}
		return [][]byte{{1, 2, 3}, many(t, forged, 3), many(t, other, 3), many(t, q, 1)}
	})
	s.Upstreams = func() ([]netip.AddrPort, error) {
		return []netip.AddrPort{netip.AddrPortFrom(testNetwork.Addr(), 53), up}, nil
	}
	to := serving(t, s)

	for _, network := range []string{"udp", "tcp"} {
		q := question(t, "Example.org.", dnsmessage.TypeA)
		raw := ask(t, network, otter, to, packed(t, q))
		if raw == nil {
			t.Fatal("no answer")
		}
		m := unpacked(t, raw)
		if m.ID != q.ID || m.RCode != 0 || m.Authoritative || !slices.Equal(texts(m.Answers), []string{"192.0.2.0"}) {
			t.Errorf("%s: answer is %+v", network, m)
		}
		if out := asked.Load(); out.ID == q.ID && network == "udp" {
			t.Log("the id that went out is the client's: once in 65536 that is chance")
		} else if len(out.Additionals) != 0 || out.Questions[0] != q.Questions[0] || !out.RecursionDesired {
			t.Errorf("%s: upstream was asked %+v", network, out)
		}
	}

	big := question(t, "big.example.org.", dnsmessage.TypeA)
	if m := unpacked(t, ask(t, "udp", otter, to, packed(t, big))); !m.Truncated || len(m.Answers) > 0 {
		t.Errorf("an answer that is too large is %+v", m.Header)
	}
	if m := unpacked(t, ask(t, "tcp", otter, to, packed(t, big))); m.Truncated || len(m.Answers) != 60 {
		t.Errorf("by TCP it is %+v with %d records", m.Header, len(m.Answers))
	}
	big.Additionals = []dnsmessage.Resource{optRecord(0, true)}
	if m := unpacked(t, ask(t, "udp", otter, to, packed(t, big))); m.Truncated || len(m.Answers) != 60 {
		t.Errorf("with room for it by UDP it is %+v with %d records", m.Header, len(m.Answers))
	}
	if out := asked.Load(); len(out.Additionals) != 1 || !out.Additionals[0].Header.DNSSECAllowed() {
		t.Errorf("upstream was asked %+v", out)
	}
}

func TestTheZoneNeverGoesOut(t *testing.T) {
	s := testServer(t)
	up := upstream(t, func(_ string, q dnsmessage.Message) [][]byte {
		t.Errorf("upstream was asked for %v", q.Questions)
		return nil
	})
	s.Upstreams = func() ([]netip.AddrPort, error) { return []netip.AddrPort{up}, nil }
	to := serving(t, s)
	for _, name := range []string{"wolf.vm.", "a.b.VM.", "vm.", "lonely.vm.", "8.0.9.127.in-addr.arpa."} {
		if ask(t, "udp", otter, to, packed(t, question(t, name, dnsmessage.TypeTXT))) == nil {
			t.Errorf("%s: no answer", name)
		}
	}
}

func TestTCPTakesMoreThanOneQuestion(t *testing.T) {
	to := serving(t, testServer(t))
	conn, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, name := range []string{"otter.vm.", "heron.vm."} {
		if err := writeFramed(conn, packed(t, question(t, name, dnsmessage.TypeA))); err != nil {
			t.Fatal(err)
		}
		raw, err := readFramed(conn, 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		if m := unpacked(t, raw); len(m.Answers) != 1 {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

func TestServeEndsWithOpenConnections(t *testing.T) {
	to := serving(t, testServer(t)) // the clean-up waits for its end
	conn, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := writeFramed(conn, packed(t, question(t, "otter.vm.", dnsmessage.TypeA))); err != nil {
		t.Fatal(err)
	}
	if _, err := readFramed(conn, 1<<16); err != nil {
		t.Fatal(err)
	}
}

func TestTable(t *testing.T) {
	var table Table
	table.Set("Otter", otter)
	table.Set("heron", otter) // the address went to another VM
	table.Delete("otter")
	if name, ok := table.name(otter); !ok || name != "heron" {
		t.Errorf("reverse name is %q, %v", name, ok)
	}
	table.Set("heron", heron)
	if _, ok := table.name(otter); ok {
		t.Error("the old address still has a name")
	}
	table.Delete("nobody")
	table.Replace(map[string]netip.Addr{"lonely": lonely})
	if _, ok := table.address("heron"); ok {
		t.Error("heron was not replaced")
	}
	if addr, ok := table.address("LONELY"); !ok || addr != lonely {
		t.Errorf("lonely is %v, %v", addr, ok)
	}
}

func TestLimits(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLimits(func() time.Time { return now })
	for i := range burst {
		if !l.query(otter) {
			t.Fatalf("query %d is too many", i)
		}
	}
	if l.query(otter) {
		t.Error("there is no end to a burst")
	}
	if !l.query(heron) {
		t.Error("one client takes from another")
	}
	now = now.Add(time.Second)
	for i := range queriesPerSecond {
		if !l.query(otter) {
			t.Fatalf("query %d of the next second is too many", i)
		}
	}
	if l.query(otter) {
		t.Error("a second gives more than it should")
	}
	var dones []func()
	for range forwardsPerClient {
		done, ok := l.forward(otter)
		if !ok {
			t.Fatal("too many questions out already")
		}
		dones = append(dones, done)
	}
	if _, ok := l.forward(otter); ok {
		t.Error("there is no end to what goes out")
	}
	dones[0]()
	if _, ok := l.forward(otter); !ok {
		t.Error("an answered question still counts")
	}
	for i := range maxClients + 10 { // of which none is idle
		l.query(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	if len(l.clients) > maxClients {
		t.Errorf("%d clients are remembered", len(l.clients))
	}
	now = now.Add(time.Minute)
	if !l.query(lonely) {
		t.Error("nobody was forgotten")
	}
	if _, ok := l.clients[otter]; !ok {
		t.Error("a client with questions out was forgotten")
	}
}

func TestHostResolvers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if _, err := HostResolvers(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
	text := "# nameserver 9.9.9.9\nnameserver 127.0.0.53\noptions edns0\nnameserver nonsense\nnameserver\nnameserver fe80::1%eth0 # x\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := HostResolvers(file)
	want := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53"), netip.MustParseAddrPort("[fe80::1%eth0]:53")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
}

// FuzzAnswer gives the server what any guest may send: there is no panic, and
// an answer is one to the question, and as small as asked for.
func FuzzAnswer(f *testing.F) {
	m := question(f, "otter.vm.", dnsmessage.TypeA)
	f.Add(packed(f, m))
	m.Additionals = []dnsmessage.Resource{optRecord(0, true)}
	f.Add(packed(f, m))
	f.Add(packed(f, question(f, "2.0.9.127.in-addr.arpa.", dnsmessage.TypePTR)))
	s := testServer(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, client := range []netip.Addr{hostAddr, heron} {
			s.answer(t.Context(), raw, client, false, func(answer []byte) {
				if answer == nil {
					return
				}
				m := unpacked(t, answer)
				if !m.Response || answer[0] != raw[0] || answer[1] != raw[1] || len(answer) > safeSize {
					t.Errorf("%x is answered by %x", raw, answer)
				}
			}, func(func()) { t.Error("a client that may not go out did") })
		}
	})
}

// FuzzUpstream gives the forwarder what any resolver may send.
func FuzzUpstream(f *testing.F) {
	raw := packed(f, question(f, "example.org.", dnsmessage.TypeA))
	f.Add(raw, raw)
	f.Add(many(f, question(f, "example.org.", dnsmessage.TypeA), 2), raw)
	f.Fuzz(func(t *testing.T, msg, ask []byte) {
		if answers(msg, ask) && (len(msg) < 12 || msg[0] != ask[0] || msg[1] != ask[1]) {
			t.Errorf("%x is taken for the answer to %x", msg, ask)
		}
	})
}
