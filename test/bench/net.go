package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"
)

const (
	sinkPort    = 5201
	sinkProgram = "/bin/bench" // this one, in the small image
	sample      = 48 << 20     // bytes sent for one figure
)

// network compares the throughput of a VM's tap, which was moved out of a network
// namespace and is a port of the bridge behind its rules, with that of a tap that
// always was where it is. TCP both ways; the host opens the connections.
func (b *bench) network(ctx context.Context) ([]row, error) {
	vm, _, err := b.small.start(ctx)
	defer func() { _ = vm.stop() }()
	if err != nil {
		return nil, fmt.Errorf("floor: %w", err)
	}
	serve := []string{"sh", "-c", fmt.Sprintf("%s -sink %d </dev/null >/dev/null 2>&1 &", sinkProgram, sinkPort)}
	if _, err := vm.run(ctx, serve...); err != nil {
		return nil, err
	}
	const name = benchVM + "-net"
	if err := b.create(ctx, smallSpec(name, false)); err != nil {
		return nil, err
	}
	if _, err := b.banger(ctx, append([]string{"vm", "exec", name, "--"}, serve...)...); err != nil {
		return nil, err
	}
	shown, err := b.api.VM(ctx, name)
	if err != nil {
		return nil, err
	}
	ours, err := netip.ParseAddr(shown.Address)
	if err != nil {
		return nil, err
	}
	figures := map[string][]time.Duration{}
	for range b.runs {
		for _, way := range []string{"to", "from"} {
			for who, addr := range map[string]netip.Addr{"floor": b.small.address, "banger": ours} {
				d, err := transfer(ctx, addr.String(), way == "from")
				if err != nil {
					return nil, fmt.Errorf("%s, %s the guest: %w", who, way, err)
				}
				figures[who+way] = append(figures[who+way], d)
			}
		}
	}
	speed := func(key string) float64 { return float64(sample) / (1 << 20) / median(figures[key]) * 1000 }
	return []row{
		{What: "tap throughput, guest to host", Unit: "MiB/s", Value: speed("bangerfrom"), Floor: speed("floorfrom"), Limit: 0.9, AtLeast: true},
		{What: "tap throughput, host to guest", Unit: "MiB/s", Value: speed("bangerto"), Floor: speed("floorto"), Limit: 0.9, AtLeast: true},
	}, b.delete(ctx, name)
}

// transfer sends sample bytes to the sink, or has it send them.
func transfer(ctx context.Context, addr string, from bool) (time.Duration, error) {
	c, err := dialSink(ctx, addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	head := binary.BigEndian.AppendUint64(nil, sample)
	if from {
		head[0] = 1
	}
	begun := time.Now()
	if _, err := c.Write(head); err != nil {
		return 0, err
	}
	if from {
		_, err = io.CopyN(io.Discard, onlyReader{c}, sample)
	} else {
		err = errors.Join(sendZeros(c, sample), readByte(c))
	}
	return time.Since(begun), err
}

// dialSink waits for the sink, whose program the guest has just begun to load.
func dialSink(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		d := net.Dialer{Timeout: 5 * time.Second}
		c, err := d.DialContext(ctx, "tcp4", net.JoinHostPort(addr, strconv.Itoa(sinkPort)))
		if err == nil {
			return c, c.SetDeadline(time.Now().Add(5 * time.Minute))
		}
		if ctx.Err() != nil {
			return nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// sink serves transfers in a guest.
func sink(port int) error {
	l, err := net.Listen("tcp4", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if err := serveSink(c); err != nil {
			fmt.Fprintln(os.Stderr, "sink:", err)
		}
	}
}

func serveSink(c net.Conn) error {
	defer c.Close()
	head := make([]byte, 8)
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	send := head[0] == 1
	head[0] = 0
	n := int64(binary.BigEndian.Uint64(head))
	if send {
		return sendZeros(c, n)
	}
	if _, err := io.CopyN(io.Discard, onlyReader{c}, n); err != nil {
		return err
	}
	_, err := c.Write([]byte{1})
	return err
}

// onlyReader keeps io.Copy from splicing, which is not what programs do.
type onlyReader struct{ io.Reader }

func sendZeros(w io.Writer, n int64) error {
	buf := make([]byte, 64<<10)
	for n > 0 {
		m, err := w.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}

func readByte(r io.Reader) error {
	_, err := io.ReadFull(r, make([]byte, 1))
	return err
}

// self is this program's own file, for the small image.
func self() ([]byte, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return os.ReadFile(exe)
}
