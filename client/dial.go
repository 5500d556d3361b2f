package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/jsonhttp"
)

// StreamProtocol is what a dial request upgrades to.
const StreamProtocol = "banger-stream"

// Headers of a dial request and its answer. A local caller asks for the
// connected socket itself; then no byte of the session passes the daemon, and
// the session outlives it.
const (
	PassFDHeader = "Banger-Pass-Fd" // request: 1
	FDHeader     = "Banger-Fd"      // answer: no, when none will come
)

// PassFDByte is the one byte that follows the 101 answer, with the descriptor
// as its SCM_RIGHTS.
const PassFDByte = 'F'

// maxAnswerHead bounds what we buffer of the answer to a dial request.
const maxAnswerHead = 64 << 10

// Dial connects to a vsock port of a running VM.
func (c *Client) Dial(ctx context.Context, ref string, port uint32) (net.Conn, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	// Whatever the peer does, ctx ends the waiting.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	stream, err := upgrade(ctx, conn, vmPath(ref, "/dial?port="+strconv.FormatUint(uint64(port), 10)))
	if !stop() && err == nil {
		_ = stream.Close()
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, c.explain(ctx, err)
	}
	return stream, nil
}

// upgrade asks for the stream on conn. On success conn belongs to the stream.
func upgrade(ctx context.Context, conn net.Conn, path string) (net.Conn, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", StreamProtocol)
	if op := jsonhttp.Operation(ctx); op != "" {
		req.Header.Set(jsonhttp.OperationHeader, op)
	}
	local, isUnix := conn.(*net.UnixConn)
	if isUnix {
		req.Header.Set(PassFDHeader, "1")
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	if !isUnix {
		return upgraded(conn, conn, req)
	}
	r := &rightsReader{conn: local}
	defer r.close()
	stream, err := upgraded(conn, r, req)
	if err != nil || r.refused {
		return stream, err
	}
	return r.take(stream.(*bufferedConn))
}

// upgraded reads the answer from r and returns conn behind it.
func upgraded(conn net.Conn, r io.Reader, req *http.Request) (net.Conn, error) {
	br := bufio.NewReaderSize(io.LimitReader(r, maxAnswerHead), 4096)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, fmt.Errorf("cannot read the answer: %w", err)
	}
	if err := checkAPI(resp.Header); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		if err := jsonhttp.DecodeAnswer(resp, nil); err != nil {
			return nil, err
		}
		return nil, api.Internal("bangerd answered %s to a dial", resp.Status)
	}
	if rights, ok := r.(*rightsReader); ok {
		rights.refused = resp.Header.Get(FDHeader) == "no"
	}
	early := make([]byte, br.Buffered())
	if _, err := io.ReadFull(br, early); err != nil {
		return nil, err
	}
	return &bufferedConn{Conn: conn, early: early}, nil
}

// bufferedConn gives back first what was read past the answer.
type bufferedConn struct {
	net.Conn
	early []byte
}

func (c *bufferedConn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite ends the sending half, where the transport can.
func (c *bufferedConn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// rightsReader reads a Unix socket and keeps the descriptors that come along
// with its bytes. A plain read would make the kernel drop them.
type rightsReader struct {
	conn    *net.UnixConn
	fds     []int
	refused bool
}

func (r *rightsReader) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(p, oob) // close-on-exec is set on what arrives
	if oobn > 0 {
		msgs, perr := unix.ParseSocketControlMessage(oob[:oobn])
		if perr != nil {
			return max(n, 0), perr
		}
		for i := range msgs {
			if fds, rerr := unix.ParseUnixRights(&msgs[i]); rerr == nil {
				r.fds = append(r.fds, fds...)
			}
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return max(n, 0), errors.New("more descriptors came than were asked for")
	}
	if err == nil && n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return max(n, 0), err // it says -1 with an error
}

// take waits for the promised byte and descriptor and returns the latter as
// a connection; the one it came on is closed.
func (r *rightsReader) take(stream *bufferedConn) (net.Conn, error) {
	mark := stream.early
	if len(mark) == 0 {
		mark = make([]byte, 1)
		if _, err := io.ReadFull(r, mark); err != nil {
			return nil, fmt.Errorf("cannot receive the connection to the guest: %w", err)
		}
	}
	if !bytes.Equal(mark, []byte{PassFDByte}) || len(r.fds) != 1 {
		return nil, api.Internal("bangerd sent %d bytes and %d descriptors instead of one connection", len(mark), len(r.fds))
	}
	f := os.NewFile(uintptr(r.fds[0]), "vsock")
	r.fds = nil
	defer f.Close() // FileConn duplicates it
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("cannot use the connection to the guest: %w", err)
	}
	return passedConn{conn, stream.Conn}, nil
}

// passedConn is a connection that came from bangerd. The one it came on stays
// open beside it and tells bangerd how long it is in use.
type passedConn struct {
	net.Conn
	daemon net.Conn
}

func (c passedConn) Close() error {
	err := c.Conn.Close()
	_ = c.daemon.Close() // nothing is written to it
	return err
}

// CloseWrite ends the sending half, where the transport can.
func (c passedConn) CloseWrite() error { return closeWrite(c.Conn) }

// close drops descriptors nobody took.
func (r *rightsReader) close() {
	for _, fd := range r.fds {
		_ = unix.Close(fd)
	}
}
