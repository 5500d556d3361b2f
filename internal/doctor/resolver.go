package doctor

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// stubs are the addresses that systemd-resolved answers on.
var stubs = []string{"127.0.0.53", "127.0.0.54"}

const (
	// stubFile is what /etc/resolv.conf should lead to where resolved runs.
	stubFile = "/run/systemd/resolve/stub-resolv.conf"
	// resolverTime is how long the host's resolver may take for a name of a VM.
	resolverTime = 3 * time.Second
)

func (h Host) resolver(ctx context.Context) Finding {
	fix := "use systemd-resolved, or have your resolver ask 127.0.0.1 port 10053 for the zone vm"
	if _, err := os.Stat(h.at(stubFile)); err == nil {
		fix = "sudo ln -sf " + stubFile + " /etc/resolv.conf, or have your resolver ask 127.0.0.1 port 10053 for the zone vm"
	}
	text, err := h.read("/etc/resolv.conf")
	if err != nil {
		return Warn(fix, "cannot tell which resolver the host asks: %v", err)
	}
	var servers []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	if len(servers) == 0 {
		return Warn(fix, "/etc/resolv.conf names no resolver")
	}
	first := servers[0]
	name, addr, running := h.someGuest(ctx)
	// Only this host's own resolver is asked: a VM's name is nobody else's business.
	if ip, err := netip.ParseAddr(first); running && err == nil && ip.IsLoopback() {
		return h.routes(ctx, route{name, addr, net.JoinHostPort(first, "53"), LoopbackNames, slices.Contains(stubs, first), fix})
	}
	if !slices.Contains(stubs, first) {
		return Warn(fix, "the host asks %s, which does not know the names of VMs", first)
	}
	return Pass("the host asks systemd-resolved, which is told of the zone vm; no VM runs whose name it could be asked for")
}

func (h Host) someGuest(ctx context.Context) (name string, addr netip.Addr, running bool) {
	if h.Guest == nil {
		return "", netip.Addr{}, false
	}
	return h.Guest(ctx)
}

// route is from a program on the host to the name of a VM.
type route struct {
	name     string
	addr     netip.Addr
	resolver string // that the host asks
	banger   string // where the answer should come from
	resolved bool   // the resolver is systemd-resolved
	fix      string // if it is another one
}

// routes asks the host's resolver for the name of a VM. If its answer is wrong,
// banger is asked as well, since the VM may have ended meanwhile.
func (h Host) routes(ctx context.Context, r route) Finding {
	ctx, cancel := context.WithTimeout(ctx, resolverTime)
	defer cancel()
	got, code, err := lookUp(ctx, r.resolver, r.name)
	if err == nil && slices.Contains(got, r.addr) {
		return Pass("%s answers for %s", r.resolver, r.name)
	}
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), resolverTime)
	defer cancel()
	if known, _, err := lookUp(own, r.banger, r.name); err != nil || !slices.Contains(known, r.addr) {
		return Warn("look again, and see check dns", "whether %s knows the names of VMs cannot be told: banger does not know %s itself", r.resolver, r.name)
	}
	fix := r.fix
	if r.resolved {
		fix = "see `resolvectl status " + h.Record.Bridge + "`: it should have the DNS server " + h.Record.Gateway().String() +
			" and the domain ~vm; sudo systemctl restart systemd-resolved, and banger-helper tells it again"
	}
	switch {
	case err != nil:
		return Warn(fix, "%s does not answer for %s: %v", r.resolver, r.name, err)
	case code == dnsmessage.RCodeServerFailure && r.resolved:
		return Warn(fix+"; with DNSSEC=yes it refuses a zone that nobody signed", "%s does not get at %s: it cannot ask banger, or refuses the answer", r.resolver, r.name)
	}
	return Warn(fix, "%s does not ask banger for names of the zone vm: for %s it says %s, not %s", r.resolver, r.name, words(got, code), r.addr)
}

// words are an answer, for a person.
func words(got []netip.Addr, code dnsmessage.RCode) string {
	switch {
	case code == dnsmessage.RCodeNameError:
		return "that there is no such name"
	case code != dnsmessage.RCodeSuccess:
		return code.String()
	case len(got) == 0:
		return "that it has no address"
	}
	return got[0].String()
}
