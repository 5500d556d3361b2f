package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// netlink is a socket to the kernel's network or nftables side, of the network
// namespace the calling thread is in when it is opened.
type netlink struct{ f *os.File }

const (
	netlinkTime = 5 * time.Second // the kernel answers at once
	// askBuffer holds what the kernel answers at once; it cuts long lists to
	// what fits. eventBuffer holds the longest message it sends by itself.
	askBuffer   = 16 << 10
	eventBuffer = 64 << 10
)

// openNetlink also joins multicast groups, for a socket that only listens.
func openNetlink(proto int, groups ...int) (netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return netlink{}, fmt.Errorf("cannot open netlink: %w", err)
	}
	n := netlink{os.NewFile(uintptr(fd), "netlink")}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return netlink{}, errors.Join(fmt.Errorf("cannot bind netlink: %w", err), n.f.Close())
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return netlink{}, errors.Join(fmt.Errorf("cannot listen to netlink group %d: %w", g, err), n.f.Close())
		}
	}
	return n, nil
}

// reply is one message of the kernel.
type reply struct {
	typ   uint16
	err   error  // of an acknowledgement
	about uint16 // type of the message that an acknowledgement is about
	body  []byte // behind the header
}

// receive returns what one read brings: whole messages.
func (n netlink) receive(buf []byte) ([]reply, error) {
	size, err := n.f.Read(buf)
	if err != nil {
		return nil, err
	}
	return parseReplies(bytes.Clone(buf[:size]))
}

var errShort = errors.New("netlink message is cut off")

func parseReplies(b []byte) (out []reply, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return nil, errShort
		}
		r := reply{typ: binary.NativeEndian.Uint16(b[4:]), body: b[unix.SizeofNlMsghdr:size]}
		if r.typ == unix.NLMSG_ERROR {
			if len(r.body) < 4+unix.SizeofNlMsghdr {
				return nil, errShort
			}
			if code := int32(binary.NativeEndian.Uint32(r.body)); code != 0 {
				r.err = unix.Errno(-code)
			}
			r.about = binary.NativeEndian.Uint16(r.body[8:])
		}
		out = append(out, r)
		b = b[min(align4(size), len(b)):]
	}
	return out, nil
}

// ask sends messages on a socket of their own, waits for the acknowledgement of
// each that wants one, and returns what came beside them and the first error.
func ask(proto int, messages ...[]byte) (out []reply, err error) {
	n, err := openNetlink(proto)
	if err != nil {
		return nil, err
	}
	defer n.f.Close()
	if err := n.f.SetDeadline(time.Now().Add(netlinkTime)); err != nil {
		return nil, err
	}
	if _, err := n.f.Write(bytes.Join(messages, nil)); err != nil {
		return nil, err
	}
	left := 0 // answers to come
	for _, m := range messages {
		if binary.NativeEndian.Uint16(m[6:])&(unix.NLM_F_ACK|unix.NLM_F_DUMP) != 0 {
			left++
		}
	}
	var first error
	buf := make([]byte, askBuffer)
	for left > 0 {
		replies, err := n.receive(buf)
		if err != nil {
			return nil, err
		}
		for _, r := range replies {
			switch {
			case r.typ == unix.NLMSG_DONE, r.typ == unix.NLMSG_ERROR && r.err == nil:
				left--
			case r.typ == unix.NLMSG_ERROR:
				if left--; first == nil {
					first = r.err
				}
				if r.about == unix.NFNL_MSG_BATCH_BEGIN { // the batch as a whole
					return nil, first
				}
			default:
				out = append(out, r)
			}
		}
	}
	return out, first
}

// routeChange asks the network side for one change; sent by the thread whose
// namespace is meant.
func routeChange(typ, flags uint16, header []byte, attrs ...[]byte) error {
	_, err := ask(unix.NETLINK_ROUTE, message(typ, flags, append([][]byte{header}, attrs...)...))
	return err
}

func message(typ, flags uint16, parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = append(b, make([]byte, 8)...) // sequence and port: every question has a socket of its own
	return append(b, body...)
}

func attr(typ uint16, parts ...[]byte) []byte {
	data := bytes.Join(parts, nil)
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	return append(b, make([]byte, align4(len(b))-len(b))...)
}

func nested(typ uint16, attrs ...[]byte) []byte { return attr(typ|unix.NLA_F_NESTED, attrs...) }

func cString(s string) []byte { return append([]byte(s), 0) }
func num8(n uint8) []byte     { return []byte{n} }
func num32(n uint32) []byte   { return binary.NativeEndian.AppendUint32(nil, n) }
func align4(n int) int        { return (n + 3) &^ 3 }

// attrs yields the attributes in b, up to the first that makes no sense.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			size := int(binary.NativeEndian.Uint16(b))
			if size < 4 || size > len(b) || !yield(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:size]) {
				return
			}
			b = b[min(align4(size), len(b)):]
		}
	}
}

// find returns the attribute at the end of a path of types; nil if there is none.
func find(b []byte, path ...uint16) []byte {
	for _, want := range path {
		var found []byte
		for typ, data := range attrs(b) {
			if typ == want {
				found = data
				break
			}
		}
		b = slices.Clip(found)
	}
	return b
}

func findText(b []byte, path ...uint16) string {
	return strings.TrimRight(string(find(b, path...)), "\x00")
}

func findBig32(b []byte, path ...uint16) uint32 {
	if v := find(b, path...); len(v) >= 4 {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}
