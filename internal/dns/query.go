package dns

import (
	"errors"

	"golang.org/x/net/dns/dnsmessage"
)

// Sizes of messages.
const (
	plainSize = 512  // UDP without EDNS0
	safeSize  = 1232 // what passes any path in one piece
	maxQuery  = 4096 // nobody asks more in one question
)

// query is a message that asks one thing.
type query struct {
	id        uint16
	recursive bool // it wishes so
	question  dnsmessage.Question
	edns      bool
	dnssec    bool
	size      int // of the answer that its sender can take by UDP
	// refuse is set if there is nothing to look up: the answer is this code.
	refuse dnsmessage.RCode
}

// errNoQuery is for what deserves no answer.
var errNoQuery = errors.New("not a query")

// badVersion is BADVERS, whose upper bits travel in the OPT record.
const badVersion = dnsmessage.RCode(16)

func parseQuery(msg []byte) (query, error) {
	var p dnsmessage.Parser
	head, err := p.Start(msg)
	if err != nil || head.Response {
		return query{}, errNoQuery
	}
	q := query{id: head.ID, recursive: head.RecursionDesired, size: plainSize}
	if head.OpCode != 0 {
		q.refuse = dnsmessage.RCodeNotImplemented
		return q, nil
	}
	if q.question, err = p.Question(); err != nil {
		q.refuse = dnsmessage.RCodeFormatError
		return q, nil
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		q.refuse = dnsmessage.RCodeFormatError
		return q, nil
	}
	if err := errors.Join(p.SkipAllAnswers(), p.SkipAllAuthorities(), q.parseOptions(&p)); err != nil {
		q.refuse = dnsmessage.RCodeFormatError
	} else if q.question.Class != dnsmessage.ClassINET && q.refuse == 0 {
		q.refuse = dnsmessage.RCodeRefused
	}
	return q, nil
}

// parseOptions looks for EDNS0, of which there may be one.
func (q *query) parseOptions(p *dnsmessage.Parser) error {
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Type == dnsmessage.TypeOPT {
			if q.edns {
				return errors.New("two OPT records")
			}
			q.edns, q.dnssec = true, h.DNSSECAllowed()
			q.size = min(max(int(h.Class), plainSize), safeSize)
			if h.TTL>>16&0xff != 0 { // a version of EDNS that does not exist yet
				q.refuse = badVersion
			}
		}
		if err := p.SkipAdditional(); err != nil {
			return err
		}
	}
}

// reply begins an answer to q, without content.
func (q query) reply(code dnsmessage.RCode) dnsmessage.Message {
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: q.id, Response: true, RecursionDesired: q.recursive, RCode: code & 0xf,
	}}
	if q.question.Name.Length > 0 {
		m.Questions = []dnsmessage.Question{q.question}
	}
	if q.edns {
		m.Additionals = []dnsmessage.Resource{optRecord(code, q.dnssec)}
	}
	return m
}

func optRecord(code dnsmessage.RCode, dnssec bool) dnsmessage.Resource {
	var h dnsmessage.ResourceHeader
	_ = h.SetEDNS0(safeSize, code, dnssec) // cannot fail with the root's name
	return dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}}
}

// refusal is the answer with nothing but a code.
func (q query) refusal(code dnsmessage.RCode) []byte {
	m := q.reply(code)
	return pack(m)
}

// truncated tells the client to ask again by TCP.
func (q query) truncated() []byte {
	m := q.reply(dnsmessage.RCodeSuccess)
	m.Truncated = true
	return pack(m)
}

// pack returns nil for what cannot be packed, which then is not answered: it
// was made of a name that came in a packet.
func pack(m dnsmessage.Message) []byte {
	raw, err := m.Pack()
	if err != nil {
		return nil
	}
	return raw
}
