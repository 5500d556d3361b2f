package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"banger/internal/installed"
)

// A packet has to please every firewall on its way: what another one drops, our
// rules cannot let through. So others are looked at, and told of our bridge
// where they have a place for that.

// chain is one of somebody's rules.
type chain struct {
	family      byte
	table, name string
	hook        int // -1 for one that others jump to
	drops       bool
}

const (
	hookInput   = 1
	hookForward = 2
	policyDrop  = 0
)

func listChains() (out []chain, err error) {
	replies, err := ask(unix.NETLINK_NETFILTER, nftMessage(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, unix.AF_UNSPEC))
	if err != nil {
		return nil, fmt.Errorf("cannot list the chains of the firewall: %w", err)
	}
	for _, r := range replies {
		if c, ok := parseChain(r); ok {
			out = append(out, c)
		}
	}
	return out, nil
}

func parseChain(r reply) (c chain, ok bool) {
	if r.typ != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWCHAIN || len(r.body) < 4 {
		return chain{}, false
	}
	b := r.body[4:]
	c = chain{family: r.body[0], table: findText(b, unix.NFTA_CHAIN_TABLE), name: findText(b, unix.NFTA_CHAIN_NAME), hook: -1}
	if find(b, unix.NFTA_CHAIN_HOOK) != nil {
		c.hook = int(findBig32(b, unix.NFTA_CHAIN_HOOK, unix.NFTA_HOOK_HOOKNUM))
		c.drops = find(b, unix.NFTA_CHAIN_POLICY) != nil && findBig32(b, unix.NFTA_CHAIN_POLICY) == policyDrop
	}
	return c, true
}

// rule of a chain, as the kernel tells it.
type rule struct {
	chain string
	body  []byte // its attributes
}

func (r rule) holds(word string) bool { return bytes.Contains(r.body, cString(word)) }

func (r rule) leadsTo(chainName string) bool {
	return bytes.Contains(r.body, attr(unix.NFTA_VERDICT_CHAIN, cString(chainName)))
}

func listRules(family byte, table string) (out []rule, err error) {
	replies, err := ask(unix.NETLINK_NETFILTER, nftMessage(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, family, attr(unix.NFTA_RULE_TABLE, cString(table))))
	if err != nil {
		return nil, fmt.Errorf("cannot list the rules of table %s: %w", table, err)
	}
	for _, r := range replies {
		if len(r.body) > 4 {
			out = append(out, rule{findText(r.body[4:], unix.NFTA_RULE_CHAIN), r.body[4:]})
		}
	}
	return out, nil
}

// reached are a chain and those that its rules lead to.
func reached(from string, names []string, rules []rule) map[string]bool {
	all := map[string]bool{from: true}
	for todo := []string{from}; len(todo) > 0; todo = todo[1:] {
		for _, r := range rules {
			if r.chain != todo[0] {
				continue
			}
			for _, name := range names {
				if !all[name] && r.leadsTo(name) {
					all[name] = true
					todo = append(todo, name)
				}
			}
		}
	}
	return all
}

// cared tells whether somebody, or we, took care of the bridge in a chain that
// drops: a rule that its packets come by names it. One in a chain that no rule
// leads to may be reached by way of a map; nobody is blamed for that.
func cared(c chain, chains []chain, rules []rule, bridge string) bool {
	var names []string
	for _, o := range chains {
		if o.family == c.family && o.table == c.table {
			names = append(names, o.name)
		}
	}
	own := reached(c.name, names, rules)
	others := map[string]bool{}
	for _, o := range chains {
		if o.family == c.family && o.table == c.table && o.hook >= 0 {
			maps.Copy(others, reached(o.name, names, rules))
		}
	}
	return slices.ContainsFunc(rules, func(r rule) bool { return r.holds(bridge) && (own[r.chain] || !others[r.chain]) })
}

// scan finds out what others drop and does what can be done. It is done again
// only after somebody changed a rule.
func (n *network) scan(ctx context.Context) error {
	n.scanning.Lock()
	defer n.scanning.Unlock()
	gen, err := generation()
	if err != nil {
		return err
	}
	n.mu.Lock()
	same := gen == n.scanned
	n.mu.Unlock()
	if same {
		return nil
	}
	chains, err := listChains()
	if err != nil {
		return err
	}
	warnings, r, err := n.judge(chains)
	if err != nil {
		return err
	}
	told, err := n.tell(ctx, r)
	if err != nil {
		return err
	}
	warnings = append(told, warnings...)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.scanned, n.warnings = gen, warnings
	return nil
}

// remedy is what others can be told of our bridge.
type remedy struct {
	firewalld bool
	docker    []string // tables
}

// tell does it. What it could not do, a person may.
func (n *network) tell(ctx context.Context, r remedy) (warnings []string, err error) {
	if r.firewalld {
		if err := n.tellFirewalld(ctx); err != nil {
			warnings = append(warnings, fmt.Sprintf("firewalld drops what guests send (%v): `firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload`", err, n.record.Bridge))
		}
	}
	for _, table := range r.docker {
		if err := n.tellDocker(ctx, table); err != nil {
			return warnings, err
		}
	}
	return warnings, nil
}

// look is scan for who only asks: it changes nothing.
func (n *network) look(chains []chain) ([]string, error) {
	gen, err := generation()
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	known, warnings := gen == n.scanned, n.warnings
	n.mu.Unlock()
	if !known {
		warnings, _, err = n.judge(chains)
	}
	return warnings, err
}

func (n *network) judge(chains []chain) (warnings []string, r remedy, err error) {
	bridge := n.record.Bridge
	has := func(table, name string) bool {
		return slices.ContainsFunc(chains, func(c chain) bool { return c.table == table && c.name == name })
	}
	r.firewalld = has("firewalld", "filter_FORWARD")
	for _, c := range chains {
		if !c.drops || c.table == tableName || c.family != unix.NFPROTO_IPV4 && c.family != unix.NFPROTO_INET {
			continue
		}
		docker := c.hook == hookForward && c.family == unix.NFPROTO_IPV4 && has(c.table, dockerChain)
		rules, err := listRules(c.family, c.table)
		switch {
		case err != nil:
			return nil, r, err
		case cared(c, chains, rules, bridge):
		case docker:
			r.docker = append(r.docker, c.table)
		case c.hook == hookForward && has(c.table, "ufw-user-forward"):
			warnings = append(warnings, fmt.Sprintf("ufw drops what guests with NAT send: `ufw route allow in on %s && ufw route allow out on %s`", bridge, bridge))
		case c.hook == hookInput && has(c.table, "ufw-user-input"):
			warnings = append(warnings, fmt.Sprintf("ufw drops what guests ask the DNS of banger: `ufw allow in on %s to any port 53`", bridge))
		case c.hook == hookForward:
			warnings = append(warnings, fmt.Sprintf("table %s drops what guests with NAT send: its chain %s must accept what comes from %s and what goes there", c.table, c.name, bridge))
		case c.hook == hookInput:
			warnings = append(warnings, fmt.Sprintf("table %s drops what guests ask the DNS of banger: its chain %s must accept port 53 from %s", c.table, c.name, bridge))
		}
		if docker {
			warnings = append(warnings, fmt.Sprintf("Docker drops what is forwarded; rules for %s are in its chain %s", bridge, dockerChain))
		}
	}
	if raw, err := os.ReadFile("/proc/net/ip_tables_names"); err == nil && slices.Contains(strings.Fields(string(raw)), "filter") {
		warnings = append(warnings, fmt.Sprintf("there are rules of iptables-legacy, which banger cannot see: if guests with NAT reach nothing, `iptables-legacy -I FORWARD -i %s -j ACCEPT` and the same with -o", bridge))
	}
	return warnings, r, nil
}

// dockerChain is the one that Docker keeps for rules of others, see its manual.
const dockerChain = "DOCKER-USER"

// dockerRules accept what our own rules judge, except towards containers: those
// Docker itself guards. The text is of forms that iptables too can show.
const dockerRules = `insert rule ip %[1]s DOCKER-USER iifname "%[2]s" counter accept comment "banger"
insert rule ip %[1]s DOCKER-USER iifname "%[2]s" oifname "br-*" counter return comment "banger"
insert rule ip %[1]s DOCKER-USER iifname "%[2]s" oifname "docker0" counter return comment "banger"
insert rule ip %[1]s DOCKER-USER oifname "%[2]s" counter accept comment "banger"
`

func (n *network) tellDocker(ctx context.Context, table string) error {
	return runNFT(ctx, fmt.Sprintf(dockerRules, table, n.record.Bridge))
}

// forgetDocker removes those rules.
func forgetDocker() (err error) {
	chains, err := listChains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		if c.name != dockerChain || c.family != unix.NFPROTO_IPV4 {
			continue
		}
		rules, one := listRules(c.family, c.table)
		err = errors.Join(err, one)
		for _, r := range rules {
			if r.chain != c.name || !r.holds(tableName) {
				continue
			}
			err = errors.Join(err, transact(nftMessage(unix.NFT_MSG_DELRULE, unix.NLM_F_ACK, c.family,
				attr(unix.NFTA_RULE_TABLE, cString(c.table)), attr(unix.NFTA_RULE_CHAIN, cString(c.name)),
				attr(unix.NFTA_RULE_HANDLE, find(r.body, unix.NFTA_RULE_HANDLE)))))
		}
	}
	return err
}

// openZone is firewalld's that accepts all. Our own rules say what guests may.
const openZone = "trusted"

// firewalldZone calls a method of its interface for zones.
func (n *network) firewalldZone(ctx context.Context, method string, args ...any) *dbus.Call {
	const name, path = "org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1"
	conn, err := n.bus.get(ctx)
	if err != nil {
		return &dbus.Call{Err: err}
	}
	return conn.Object(name, path).CallWithContext(ctx, name+".zone."+method, dbus.FlagNoAutoStart, args...)
}

// tellFirewalld puts the bridge into that zone, unless somebody put it into one.
func (n *network) tellFirewalld(ctx context.Context) error {
	var zone string
	if err := n.firewalldZone(ctx, "getZoneOfInterface", n.record.Bridge).Store(&zone); err != nil || zone != "" {
		return err
	}
	return n.firewalldZone(ctx, "addInterface", openZone, n.record.Bridge).Err
}

// forgetFirewalld takes it out again: another device may get the name.
func (n *network) forgetFirewalld(ctx context.Context) error {
	var zone string
	if err := n.firewalldZone(ctx, "getZoneOfInterface", n.record.Bridge).Store(&zone); err != nil || zone != openZone {
		return nil // it does not run, or knows nothing of the bridge
	}
	return n.firewalldZone(ctx, "removeInterface", openZone, n.record.Bridge).Err
}

// ForgetNetwork removes bridge and rules, and what others were told of them. No helper
// runs.
func ForgetNetwork(ctx context.Context, r installed.Record) error {
	n := &network{record: r, bus: &systemBus{}}
	err := errors.Join(forgetDocker(), n.forgetFirewalld(ctx))
	for _, family := range tableFamilies {
		one := transact(nftMessage(unix.NFT_MSG_DELTABLE, unix.NLM_F_ACK, family, attr(unix.NFTA_TABLE_NAME, cString(tableName))))
		if one != nil && !errors.Is(one, unix.ENOENT) {
			err = errors.Join(err, fmt.Errorf("cannot remove the firewall rules: %w", one))
		}
	}
	l, one := linkByName(r.Bridge)
	if one == nil && l.isOurs(installed.GuestMAC(r.Gateway())) {
		one = routeChange(unix.RTM_DELLINK, unix.NLM_F_ACK, linkHeader(l.index, 0, 0))
	}
	return errors.Join(err, ignoreNoDevice(one))
}

// change is what the kernel tells of a change of a rule.
type change struct {
	generation uint32 // of the whole transaction, at its end; else 0
	by         string // then: the program that did it
	table      string // that was touched
}

func parseChange(r reply) (c change) {
	if r.typ>>8 != unix.NFNL_SUBSYS_NFTABLES || len(r.body) < 4 {
		return c
	}
	b := r.body[4:]
	if r.typ&0xff == unix.NFT_MSG_NEWGEN {
		return change{generation: findBig32(b, unix.NFTA_GEN_ID), by: findText(b, unix.NFTA_GEN_PROC_NAME)}
	}
	// In messages of every other kind the first attribute is the table's name.
	return change{table: findText(b, unix.NFTA_TABLE_NAME)}
}
