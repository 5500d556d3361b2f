package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/installed"
)

func TestMessagesAndAttributes(t *testing.T) {
	m := message(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHeader(7, unix.IFF_UP, unix.IFF_UP),
		attr(unix.IFLA_IFNAME, cString("br-fc")), nested(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, cString("bridge"))))
	replies, err := parseReplies(append(m, m...))
	if err != nil || len(replies) != 2 {
		t.Fatal(replies, err)
	}
	for _, r := range replies {
		l, name, ok := parseLink(r)
		if !ok || name != "br-fc" || l.index != 7 || !l.up || l.kind != "bridge" || l.master != 0 {
			t.Errorf("%+v %q %v", l, name, ok)
		}
	}
	if _, err := parseReplies(m[:len(m)-1]); !errors.Is(err, errShort) {
		t.Errorf("cut off: %v", err)
	}
	if b := find(replies[0].body[unix.SizeofIfInfomsg:], unix.IFLA_MASTER); b != nil {
		t.Errorf("found %x", b)
	}
}

func FuzzParseReplies(f *testing.F) {
	f.Add(message(unix.RTM_NEWLINK, 0, linkHeader(1, 0, 0), attr(unix.IFLA_IFNAME, cString("x"))))
	f.Add(message(unix.NLMSG_ERROR, 0, make([]byte, 20)))
	f.Add(nftMessage(unix.NFT_MSG_NEWCHAIN, 0, unix.NFPROTO_IPV4, nested(unix.NFTA_CHAIN_HOOK, attr(unix.NFTA_HOOK_HOOKNUM, make([]byte, 4)))))
	f.Fuzz(func(t *testing.T, b []byte) {
		replies, err := parseReplies(b)
		if err != nil {
			return
		}
		for _, r := range replies {
			parseLink(r)
			parseChain(r)
			parseChange(r)
		}
	})
}

func TestElementsAreAsTheRulesHaveThem(t *testing.T) {
	p := port{Address: netip.MustParseAddr("172.16.0.2"), NAT: true, Group: "g", Mark: markBase + 1}
	if e := p.elements(idA); e != nil {
		t.Errorf("not pinned, but in the kernel: %v", e)
	}
	p.Pinned = true
	// What nft --debug=netlink prints for the same.
	want := map[string]string{
		"ports":   "7461703031323334353637383961620000"[:32],
		"pins":    "74617030313233343536373839616200" + "02fcac1000020000" + "ac100002",
		"nat":     "ac100002",
		"groups":  "74617030313233343536373839616200",
		"members": fmt.Sprintf("%x", num32(markBase+1)) + "74617030313233343536373839616200",
	}
	for _, e := range p.elements(idA) {
		if got := fmt.Sprintf("%x", e.key); got != want[e.set] {
			t.Errorf("%s: %s, want %s", e.set, got, want[e.set])
		}
		if (e.value != "") != (e.set == "groups") {
			t.Errorf("%s has the value %x", e.set, e.value)
		}
		delete(want, e.set)
	}
	if len(want) > 0 {
		t.Errorf("missing %v", want)
	}
}

func testRecord() installed.Record {
	return installed.Record{Bridge: "br-fc", Network: "172.16.0.1/16"}
}

func TestRulesText(t *testing.T) {
	a, b := netip.MustParseAddr("172.16.0.2"), netip.MustParseAddr("172.16.0.3")
	text, err := renderRules(testRecord(), ports{
		idA: {Address: a, Pinned: true, NAT: true, Group: "g", Mark: markBase + 1},
		idB: {Address: b, Pinned: true},
		// Launched, not handed over.
		"000000000000": {Address: netip.MustParseAddr("172.16.0.4"), NAT: true, Group: "g", Mark: markBase + 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`elements = { "tap0123456789ab", "tapba9876543210" }`,
		`elements = { "tap0123456789ab" . 02:fc:ac:10:00:02 . 172.16.0.2, "tapba9876543210" . 02:fc:ac:10:00:03 . 172.16.0.3 }`,
		`elements = { "tap0123456789ab" : 0xba6e0001 }`,
		`elements = { 0xba6e0001 . "tap0123456789ab" }`,
		`elements = { 172.16.0.2 }`,
		`ip daddr 172.16.0.1 meta l4proto { tcp, udp } th dport 53 accept`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(text, "{{") || strings.Contains(text, "172.16.0.4") {
		t.Error(text)
	}
	// Every chain that judges ends with a drop.
	for _, chain := range strings.Split(text, "\tchain ")[1:] {
		body, _, _ := strings.Cut(chain, "\n\t}")
		if strings.Contains(body, "hook") {
			continue
		}
		if !strings.HasSuffix(strings.TrimSpace(body), "drop") {
			t.Errorf("chain %s", body)
		}
	}
	empty, err := renderRules(testRecord(), nil)
	if err != nil || strings.Contains(empty, "elements =") {
		t.Errorf("%v\n%s", err, empty)
	}
}

// Whatever is done, members of one group have one mark and no two groups share
// one, and the difference leads from any table to any other.
func TestMarksAndDifference(t *testing.T) {
	ids := []string{idA, idB, "000000000001", "000000000002"}
	group := rapid.SampledFrom([]string{"", "a", "b", "c"})
	rapid.Check(t, func(t *rapid.T) {
		now := ports{}
		kernel := map[element]bool{}
		for step := range rapid.IntRange(1, 8).Draw(t, "steps") {
			before := maps.Clone(now)
			i := rapid.IntRange(0, len(ids)-1).Draw(t, "id")
			if rapid.IntRange(0, 4).Draw(t, "gone") == 0 {
				delete(now, ids[i])
			} else {
				p := port{Address: netip.AddrFrom4([4]byte{172, 16, 0, byte(i + 2)}), Pinned: rapid.Bool().Draw(t, "pinned"),
					NAT: rapid.Bool().Draw(t, "nat"), Group: group.Draw(t, "group")}
				if now[ids[i]].Group == p.Group {
					p.Mark = now[ids[i]].Mark
				}
				now[ids[i]] = p
			}
			if err := now.mark(); err != nil {
				t.Fatal(err)
			}
			marks, owner := map[string]uint32{}, map[uint32]string{}
			for id, p := range now {
				if (p.Mark == 0) != (p.Group == "") || p.Mark != 0 && p.Mark&^maxMark != markBase {
					t.Fatalf("step %d: %s: %+v", step, id, p)
				}
				if p.Mark != 0 && (marks[p.Group] != 0 && marks[p.Group] != p.Mark || owner[p.Mark] != "" && owner[p.Mark] != p.Group) {
					t.Fatalf("step %d: %v", step, now)
				}
				marks[p.Group], owner[p.Mark] = p.Mark, p.Group
			}
			del, add := difference(before, now)
			for _, e := range del {
				if !kernel[e] {
					t.Fatalf("step %d: %v is not there to be removed", step, e)
				}
				delete(kernel, e)
			}
			for _, e := range add {
				kernel[e] = true
			}
			want := 0
			for id, p := range now {
				for _, e := range p.elements(id) {
					want++
					if !kernel[e] {
						t.Fatalf("step %d: no %v", step, e)
					}
				}
			}
			if want != len(kernel) {
				t.Fatalf("step %d: %d elements, want %d", step, len(kernel), want)
			}
		}
	})
}

func TestPortsFileIsRefusedWhenImpossible(t *testing.T) {
	p := Places{Ports: t.TempDir() + "/ports.json"}
	if got, err := p.loadPorts(); err != nil || len(got) != 0 {
		t.Fatal(got, err)
	}
	for _, bad := range []string{``, `[]`, `{"x":{"address":"172.16.0.2"}}`, `{"` + idA + `":{}}`,
		`{"` + idA + `":{"address":"::1"}}`, `{"` + idA + `":{"address":"172.16.0.2","mark":1}}`} {
		must(t, os.WriteFile(p.Ports, []byte(bad), 0o600))
		if got, err := p.loadPorts(); err == nil {
			t.Errorf("%s gives %v", bad, got)
		}
	}
}

func TestApplyRefuses(t *testing.T) {
	s, _ := testServer(t)
	s.record.Network, s.record.Bridge = "172.16.0.1/16", "br-fc"
	if _, err := s.slots.reserve(idA); err != nil {
		t.Fatal(err)
	}
	many := make([]helper.GuestNetwork, maxGuests+1)
	for _, tt := range []struct {
		name   string
		guests []helper.GuestNetwork
		code   string
	}{
		{"no slot", []helper.GuestNetwork{{ID: idB}}, api.CodeNotFound},
		{"not launched", []helper.GuestNetwork{{ID: idA}}, api.CodeConflict},
		{"twice", []helper.GuestNetwork{{ID: idA}, {ID: idA, Group: "g"}}, api.CodeBadRequest},
		{"no id", []helper.GuestNetwork{{}}, api.CodeBadRequest},
		{"path", []helper.GuestNetwork{{ID: "../../etc"}}, api.CodeBadRequest},
		{"nft", []helper.GuestNetwork{{ID: `0123456789"}`}}, api.CodeBadRequest},
		{"group", []helper.GuestNetwork{{ID: idA, Group: "a b"}}, api.CodeBadRequest},
		{"group of newline", []helper.GuestNetwork{{ID: idA, Group: "a\n"}}, api.CodeBadRequest},
		{"long group", []helper.GuestNetwork{{ID: idA, Group: strings.Repeat("a", 64)}}, api.CodeBadRequest},
		{"many", many, api.CodeBadRequest},
	} {
		_, err := s.applyNetwork(t.Context(), helper.NetworkRequest{Guests: tt.guests})
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Code != tt.code {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if _, err := os.Lstat(s.places.Ports); err == nil {
		t.Error("something refused was written down")
	}
	// Policy is kept from launch on; before the handover nothing is in the
	// kernel, which this test could not change.
	must(t, os.MkdirAll(s.places.jail(idA), 0o700))
	if _, err := s.applyNetwork(t.Context(), helper.NetworkRequest{Guests: []helper.GuestNetwork{{ID: idA, Group: "g"}}}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(s.places.Ports)
	must(t, err)
	var got ports
	must(t, json.Unmarshal(raw, &got))
	if got[idA] != (port{Address: netip.MustParseAddr("172.16.0.2"), Group: "g", Mark: markBase + 1}) {
		t.Errorf("%s", raw)
	}
	must(t, s.places.removePort(idA))
	if got, err := s.places.loadPorts(); err != nil || len(got) != 0 {
		t.Errorf("after the end: %v, %v", got, err)
	}
}

func TestJudgeGeneration(t *testing.T) {
	for _, tt := range []struct {
		name   string
		good   uint32
		c      change
		ours   bool
		broken bool
		after  uint32
	}{
		{"nothing known", 0, change{generation: 9, by: "nft"}, true, false, 0},
		{"already seen", 9, change{generation: 9, by: "nft"}, true, false, 9},
		{"others' rules", 9, change{generation: 10, by: "nft"}, false, false, 10},
		{"ours, by us", 9, change{generation: 10, by: "banger-helper"}, true, false, 10},
		{"ours, by another", 9, change{generation: 10, by: "nft"}, true, true, 0},
		{"a gap", 9, change{generation: 12, by: "nft"}, false, false, 9},
		{"around", 1<<32 - 1, change{generation: 1, by: "nft"}, true, true, 0},
	} {
		n := &network{good: tt.good, name: "test"}
		if got := n.judgeGeneration(tt.c, tt.ours); got != tt.broken || n.good != tt.after {
			t.Errorf("%s: %v, %d", tt.name, got, n.good)
		}
	}
}

// As ufw has it: one table, and what was said of one hook does not count for the other.
func TestBridgeIsCaredFor(t *testing.T) {
	input := chain{unix.NFPROTO_IPV4, "filter", "INPUT", hookInput, true}
	forward := chain{unix.NFPROTO_IPV4, "filter", "FORWARD", hookForward, true}
	chains := []chain{input, forward, {unix.NFPROTO_INET, "filter", "other", hookForward, true}}
	for _, name := range []string{"before-input", "user-input", "x-user-input", "user-forward", "by-map"} {
		chains = append(chains, chain{unix.NFPROTO_IPV4, "filter", name, -1, false})
	}
	jump := func(from, to string) rule { return rule{from, attr(unix.NFTA_VERDICT_CHAIN, cString(to))} }
	names := func(in string) rule { return rule{in, cString("br-fc")} }
	jumps := []rule{jump("INPUT", "before-input"), jump("before-input", "user-input"), jump("user-input", "before-input"),
		jump("FORWARD", "user-forward"), jump("FORWARD", "x-user-input")}
	for in, want := range map[string][2]bool{
		"": {}, "INPUT": {true, false}, "user-input": {true, false}, "user-forward": {false, true},
		"x-user-input": {false, true}, "by-map": {true, true},
	} {
		rules := jumps
		if in != "" {
			rules = append(slices.Clone(jumps), names(in))
		}
		if got := [2]bool{cared(input, chains, rules, "br-fc"), cared(forward, chains, rules, "br-fc")}; got != want {
			t.Errorf("named in %q: input, forward = %v, want %v", in, got, want)
		}
	}
}

func TestJudgeOtherFirewalls(t *testing.T) {
	n := &network{record: testRecord()}
	w, r, err := n.judge([]chain{
		{unix.NFPROTO_INET, "banger", "input", hookInput, true},
		{unix.NFPROTO_IPV6, "filter", "FORWARD", hookForward, true},
		{unix.NFPROTO_IPV4, "filter", "FORWARD", hookForward, false},
	})
	if err != nil || r.firewalld || len(r.docker) > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, r, err := n.judge([]chain{{unix.NFPROTO_INET, "firewalld", "filter_FORWARD", hookForward, false}}); err != nil || !r.firewalld {
		t.Errorf("firewalld: %+v, %v", r, err)
	}
	for _, s := range w {
		if !strings.Contains(s, "iptables-legacy") { // this host's own
			t.Errorf("warning %q", s)
		}
	}
}
