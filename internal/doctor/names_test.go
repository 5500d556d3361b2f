package doctor

import (
	"context"
	"net"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"banger/internal/installed"
)

// nameServer answers every question with what reply makes of it.
func nameServer(t *testing.T, reply func(m *dnsmessage.Message) []byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) == nil {
				_, _ = conn.WriteTo(reply(&m), from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

func TestNames(t *testing.T) {
	h := tree(t, nil)
	h.Record = installed.Record{Bridge: "br-none", Network: "172.16.0.1/16"}
	answer := func(code dnsmessage.RCode, authoritative bool) func(*dnsmessage.Message) []byte {
		return func(m *dnsmessage.Message) []byte {
			m.Response, m.RCode, m.Authoritative = true, code, authoritative
			raw, _ := m.Pack()
			return raw
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	good := nameServer(t, answer(dnsmessage.RCodeNameError, true))
	check(t, "ours", h.Names(ctx, "vm", good), "pass", good)
	check(t, "one of two", h.Names(ctx, "vm", good, nameServer(t, answer(dnsmessage.RCodeNameError, false))), "fail", "not in charge")
	check(t, "refuses", h.Names(ctx, "vm", nameServer(t, answer(dnsmessage.RCodeRefused, true))), "fail", "not in charge")
	check(t, "garbage", h.Names(ctx, "vm", nameServer(t, func(*dnsmessage.Message) []byte { return []byte("hello") })), "fail", "does not speak DNS")
	closed, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := closed.LocalAddr().String()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	check(t, "silent", h.Names(short, "vm", addr), "fail", "no answer")
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	check(t, "nobody", h.Names(ctx, "vm", addr), "fail", "refused")
}
