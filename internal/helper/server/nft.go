package server

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"text/template"

	"golang.org/x/sys/unix"

	"banger/internal/installed"
)

// The rules are one text that a person can read, which nft loads whole when
// they are not there. What changes with each VM are elements of its sets; those
// go to the kernel by netlink, since starting nft would take longer than all else.
//
//go:embed rules.nft
var rulesText string

// Parsed when it is needed: the program that cleans up after a VM never does.
var rulesTemplate = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("rules.nft").Parse(rulesText))
})

const (
	tableName = "banger"
	// markBase is the upper half of the mark of frames in a group.
	markBase = 0xba6e0000
	maxMark  = 0xffff
)

var tableFamilies = []byte{unix.NFPROTO_BRIDGE, unix.NFPROTO_INET}

type portRule struct {
	Tap, MAC, IP string
	Mark         uint32
}

// renderRules is the rules with all ports in them.
func renderRules(r installed.Record, all ports) (string, error) {
	prefix, err := netip.ParsePrefix(r.Network)
	if err != nil {
		return "", err
	}
	data := struct {
		Bridge, Address     string
		MarkBase            uint32
		Ports, Grouped, NAT []portRule
	}{Bridge: r.Bridge, Address: prefix.Addr().String(), MarkBase: markBase}
	for _, id := range all.ids() {
		p := all[id]
		if !p.Pinned {
			continue
		}
		rule := portRule{tapName(id), installed.GuestMAC(p.Address).String(), p.Address.String(), p.Mark}
		data.Ports = append(data.Ports, rule)
		if p.Mark != 0 {
			data.Grouped = append(data.Grouped, rule)
		}
		if p.NAT {
			data.NAT = append(data.NAT, rule)
		}
	}
	var b strings.Builder
	if err := rulesTemplate().Execute(&b, data); err != nil {
		return "", fmt.Errorf("cannot render the rules: %w", err)
	}
	return b.String(), nil
}

// nftPrograms are the places where distributions have nft.
var nftPrograms = []string{"/usr/sbin/nft", "/usr/bin/nft", "/sbin/nft"}

func nftProgram() (string, error) {
	for _, path := range nftPrograms {
		f, err := openTrusted(path)
		if err == nil {
			return path, f.Close()
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) { // /sbin may be a link
			return "", err
		}
	}
	return "", errors.New("nft is missing: install the package nftables")
}

// runNFT loads a text, in one transaction.
func runNFT(ctx context.Context, script string) error {
	program, err := nftProgram()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "-f", "-")
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot load firewall rules: %w: %.500s", err, bytes.TrimSpace(out))
	}
	return nil
}

// element is one of a set of ours.
type element struct {
	family     byte
	set        string
	key, value string // as the kernel wants them
}

// elements are what the rules say of a port, as rules.nft has it.
func (p port) elements(id string) []element {
	if !p.Pinned {
		return nil
	}
	tap := tapName(id) + "\x00" // IFNAMSIZ
	mac := string(installed.GuestMAC(p.Address)) + "\x00\x00"
	ip := string(p.Address.AsSlice())
	out := []element{
		{unix.NFPROTO_BRIDGE, "ports", tap, ""},
		{unix.NFPROTO_BRIDGE, "pins", tap + mac + ip, ""},
	}
	if p.NAT {
		out = append(out, element{unix.NFPROTO_INET, "nat", ip, ""})
	}
	if p.Mark != 0 {
		mark := string(num32(p.Mark))
		out = append(out, element{unix.NFPROTO_BRIDGE, "groups", tap, mark}, element{unix.NFPROTO_BRIDGE, "members", mark + tap, ""})
	}
	return out
}

// difference lists what has to go and to come on the way from one to the other.
func difference(before, after ports) (del, add []element) {
	for id := range before {
		del = append(del, before[id].elements(id)...)
	}
	for id := range after {
		for _, e := range after[id].elements(id) {
			if i := slices.Index(del, e); i >= 0 {
				del = slices.Delete(del, i, i+1)
			} else {
				add = append(add, e)
			}
		}
	}
	return del, add
}

// nftMessage is a message of nf_tables, with its nfgenmsg.
func nftMessage(typ, flags uint16, family byte, attrs ...[]byte) []byte {
	return message(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, append([][]byte{{family, 0, 0, 0}}, attrs...)...)
}

func (e element) message(typ, flags uint16) []byte {
	parts := [][]byte{nested(unix.NFTA_SET_ELEM_KEY, attr(unix.NFTA_DATA_VALUE, []byte(e.key)))}
	if e.value != "" {
		parts = append(parts, nested(unix.NFTA_SET_ELEM_DATA, attr(unix.NFTA_DATA_VALUE, []byte(e.value))))
	}
	return nftMessage(typ, flags|unix.NLM_F_ACK, e.family,
		attr(unix.NFTA_SET_ELEM_LIST_TABLE, cString(tableName)), attr(unix.NFTA_SET_ELEM_LIST_SET, cString(e.set)),
		nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, nested(unix.NFTA_LIST_ELEM, parts...)))
}

// transact sends changes of nf_tables that happen together or not at all.
func transact(messages ...[]byte) error {
	header := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	messages = append([][]byte{message(unix.NFNL_MSG_BATCH_BEGIN, 0, header)}, messages...)
	_, err := ask(unix.NETLINK_NETFILTER, append(messages, message(unix.NFNL_MSG_BATCH_END, 0, header))...)
	return err
}

func changeElements(del, add []element) error {
	var messages [][]byte
	for _, e := range del {
		messages = append(messages, e.message(unix.NFT_MSG_DELSETELEM, 0))
	}
	for _, e := range add {
		messages = append(messages, e.message(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE))
	}
	return transact(messages...)
}

// removeElements removes those that are there.
func removeElements(del []element) (err error) {
	if len(del) == 0 || changeElements(del, nil) == nil {
		return nil
	}
	for _, e := range del {
		if one := changeElements([]element{e}, nil); one != nil && !errors.Is(one, unix.ENOENT) {
			err = errors.Join(err, fmt.Errorf("cannot remove an element of set %s: %w", e.set, one))
		}
	}
	return err
}

// generation is a number that grows with every change of any rule of the host.
func generation() (uint32, error) {
	replies, err := ask(unix.NETLINK_NETFILTER, nftMessage(unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, unix.AF_UNSPEC))
	if err != nil {
		return 0, fmt.Errorf("cannot ask for the state of the firewall: %w", err)
	}
	for _, r := range replies {
		if len(r.body) > 4 {
			return findBig32(r.body[4:], unix.NFTA_GEN_ID), nil
		}
	}
	return 0, errShort
}

// tablesPresent tells whether both tables exist.
func tablesPresent() bool {
	for _, family := range tableFamilies {
		_, err := ask(unix.NETLINK_NETFILTER, nftMessage(unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, family, attr(unix.NFTA_TABLE_NAME, cString(tableName))))
		if err != nil {
			return false
		}
	}
	return true
}
