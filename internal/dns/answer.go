package dns

import (
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// ttl is short: a VM's address may be another's soon.
const ttl = 5

// zone is a part of the tree of names that is answered with authority.
type zone struct{ apex string } // lower case, with dots around no label: "vm."

// authority answers q if it is about one of our zones. The client sees only
// those guests that it may resolve.
func (s *Server) authority(q query, client netip.Addr) (answer []byte, ours bool) {
	name := strings.ToLower(q.question.Name.String())
	apex := strings.ToLower(s.Zone) + "."
	if name == apex {
		return s.apex(q, zone{apex}), true
	}
	if label, below := strings.CutSuffix(name, "."+apex); below {
		addr, known := s.Table.address(label)
		if !known || !s.sees(client, addr) {
			return s.nothing(q, zone{apex}, dnsmessage.RCodeNameError), true
		}
		return s.host(q, zone{apex}, addr), true
	}
	if addr, ok := reverseAddress(name); ok && s.Network.Contains(addr) {
		z := zone{reverseApex(s.Network)}
		host, known := s.Table.name(addr)
		if !known || !s.sees(client, addr) {
			return s.nothing(q, z, dnsmessage.RCodeNameError), true
		}
		return s.pointer(q, z, host), true
	}
	return nil, false
}

// sees reports whether client may know of the guest at addr.
func (s *Server) sees(client, addr netip.Addr) bool {
	return !s.isGuest(client) || client == addr || s.MayResolve(client, addr)
}

func (s *Server) apex(q query, z zone) []byte {
	switch q.question.Type {
	case dnsmessage.TypeSOA, dnsmessage.TypeALL:
		return s.records(q, z.soa())
	case dnsmessage.TypeNS:
		return s.records(q, dnsmessage.Resource{Header: header(q.question.Name, dnsmessage.TypeNS), Body: &dnsmessage.NSResource{NS: z.server()}})
	}
	return s.nothing(q, z, dnsmessage.RCodeSuccess)
}

func (s *Server) host(q query, z zone, addr netip.Addr) []byte {
	if t := q.question.Type; (t == dnsmessage.TypeA || t == dnsmessage.TypeALL) && addr.Is4() {
		return s.records(q, dnsmessage.Resource{Header: header(q.question.Name, dnsmessage.TypeA), Body: &dnsmessage.AResource{A: addr.As4()}})
	}
	return s.nothing(q, z, dnsmessage.RCodeSuccess)
}

func (s *Server) pointer(q query, z zone, host string) []byte {
	target, err := dnsmessage.NewName(host + "." + s.Zone + ".")
	if t := q.question.Type; (t == dnsmessage.TypePTR || t == dnsmessage.TypeALL) && err == nil {
		return s.records(q, dnsmessage.Resource{Header: header(q.question.Name, dnsmessage.TypePTR), Body: &dnsmessage.PTRResource{PTR: target}})
	}
	return s.nothing(q, z, dnsmessage.RCodeSuccess)
}

func (s *Server) records(q query, answers ...dnsmessage.Resource) []byte {
	m := q.reply(dnsmessage.RCodeSuccess)
	m.Authoritative = true
	m.Answers = answers
	return pack(m)
}

// nothing says with authority that there is no such name, or no such record of
// it; the SOA tells for how long that holds.
func (s *Server) nothing(q query, z zone, code dnsmessage.RCode) []byte {
	m := q.reply(code)
	m.Authoritative = true
	m.Authorities = []dnsmessage.Resource{z.soa()}
	return pack(m)
}

func header(name dnsmessage.Name, t dnsmessage.Type) dnsmessage.ResourceHeader {
	return dnsmessage.ResourceHeader{Name: name, Type: t, Class: dnsmessage.ClassINET, TTL: ttl}
}

func (z zone) name() dnsmessage.Name { return dnsmessage.MustNewName(z.apex) }

// server is a name for the records that need one. It leads nowhere: nobody
// delegates to this zone.
func (z zone) server() dnsmessage.Name { return dnsmessage.MustNewName("ns." + z.apex) }

func (z zone) soa() dnsmessage.Resource {
	return dnsmessage.Resource{Header: header(z.name(), dnsmessage.TypeSOA), Body: &dnsmessage.SOAResource{
		NS: z.server(), MBox: dnsmessage.MustNewName("nobody." + z.apex),
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, MinTTL: ttl,
	}}
}

// reverseAddress reads a name like 5.0.16.172.in-addr.arpa.
func reverseAddress(name string) (netip.Addr, bool) {
	digits, ok := strings.CutSuffix(name, ".in-addr.arpa.")
	labels := strings.Split(digits, ".")
	if !ok || len(labels) != 4 {
		return netip.Addr{}, false
	}
	var a [4]byte
	for i, label := range labels {
		n, err := strconv.ParseUint(label, 10, 8)
		if err != nil || strconv.FormatUint(n, 10) != label {
			return netip.Addr{}, false
		}
		a[3-i] = byte(n)
	}
	return netip.AddrFrom4(a), true
}

// reverseApex is the zone of whole labels that holds the network.
func reverseApex(network netip.Prefix) string {
	a := network.Addr().As4()
	apex := "in-addr.arpa."
	for _, b := range a[:network.Bits()/8] {
		apex = strconv.Itoa(int(b)) + "." + apex
	}
	return apex
}
