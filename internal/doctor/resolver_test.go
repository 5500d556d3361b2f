package doctor

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"banger/api"
	"banger/internal/installed"
)

func TestWhichResolver(t *testing.T) {
	for name, c := range map[string]struct {
		text, fix    string
		status, says string
	}{
		"resolved":    {"# x\noptions edns0\nnameserver 127.0.0.53\n", "", "pass", "systemd-resolved"},
		"another":     {"nameserver 192.0.2.1\nnameserver 127.0.0.53\n", "port 10053", "warn", "192.0.2.1"},
		"no resolver": {"search example\n", "use systemd-resolved", "warn", "names no resolver"},
	} {
		h := tree(t, map[string]string{"/etc/resolv.conf": c.text})
		got := h.resolver(t.Context())
		check(t, name, got, api.CheckStatus(c.status), c.says)
		if !strings.Contains(got.Fix, c.fix) {
			t.Errorf("%s: fix %q", name, got.Fix)
		}
	}
	check(t, "no file", tree(t, nil).resolver(t.Context()), "warn", "cannot tell")
	// A VM's name does not leave the host.
	h := tree(t, map[string]string{"/etc/resolv.conf": "nameserver 192.0.2.1\n", stubFile: ""})
	h.Guest = func(context.Context) (string, netip.Addr, bool) { return "box.vm", netip.Addr{}, true }
	got := h.resolver(t.Context())
	check(t, "resolved is passed by", got, "warn", "does not know the names")
	if !strings.Contains(got.Fix, "ln -sf "+stubFile) {
		t.Errorf("fix: %q", got.Fix)
	}
}

func TestRoutes(t *testing.T) {
	here, there := netip.MustParseAddr("172.16.0.2"), netip.MustParseAddr("192.0.2.9")
	reply := func(code dnsmessage.RCode, addrs ...netip.Addr) string {
		return nameServer(t, func(m *dnsmessage.Message) []byte {
			m.Response, m.RCode = true, code
			if !m.RecursionDesired || m.Questions[0].Name.String() != "box.vm." {
				m.RCode = dnsmessage.RCodeRefused // as systemd-resolved does
			}
			for _, a := range addrs {
				m.Answers = append(m.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
					Body:   &dnsmessage.AResource{A: a.As4()}})
			}
			raw, _ := m.Pack()
			return raw
		})
	}
	closed, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	h := Host{Record: installed.Record{Bridge: "br-fc", Network: "172.16.0.1/16"}}
	good := reply(dnsmessage.RCodeSuccess, here)
	for name, c := range map[string]struct {
		resolver, banger   string
		resolved           bool
		status, says, does string
	}{
		"routed":                       {good, good, true, "pass", "answers for box.vm", ""},
		"another, routed":              {good, good, false, "pass", "answers for box.vm", ""},
		"not routed":                   {reply(dnsmessage.RCodeNameError), good, true, "warn", "that there is no such name", "resolvectl status br-fc`: it should have the DNS server 172.16.0.1"},
		"another, not routed":          {reply(dnsmessage.RCodeNameError), good, false, "warn", "does not ask banger", "mine"},
		"somebody else's zone":         {reply(dnsmessage.RCodeSuccess, there), good, true, "warn", "it says 192.0.2.9, not 172.16.0.2", "resolvectl"},
		"no address":                   {reply(dnsmessage.RCodeSuccess), good, true, "warn", "no address", "resolvectl"},
		"refused by DNSSEC":            {reply(dnsmessage.RCodeServerFailure), good, true, "warn", "refuses the answer", "DNSSEC"},
		"nobody":                       {closed.LocalAddr().String(), good, true, "warn", "does not answer for box.vm", "resolvectl"},
		"garbage":                      {nameServer(t, func(*dnsmessage.Message) []byte { return []byte("hello") }), good, true, "warn", "does not speak DNS", "resolvectl"},
		"a VM that ended":              {reply(dnsmessage.RCodeNameError), reply(dnsmessage.RCodeNameError), true, "warn", "cannot be told", "look again"},
		"a name that is another's now": {reply(dnsmessage.RCodeNameError), reply(dnsmessage.RCodeSuccess, there), true, "warn", "cannot be told", "look again"},
		"names are not served":         {reply(dnsmessage.RCodeNameError), closed.LocalAddr().String(), true, "warn", "cannot be told", "check dns"},
		"an address of another":        {good, reply(dnsmessage.RCodeSuccess, there), true, "pass", "", ""},
	} {
		got := h.routes(t.Context(), route{"box.vm", here, c.resolver, c.banger, c.resolved, "mine"})
		check(t, name, got, api.CheckStatus(c.status), c.says)
		if !strings.Contains(got.Fix, c.does) {
			t.Errorf("%s: fix %q", name, got.Fix)
		}
	}
}
