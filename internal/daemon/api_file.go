package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
)

const (
	// fileUpgrade asks for the answer 101, after which the caller passes a file.
	fileUpgrade = "banger-file"
	// passTime is how long it may take to do so.
	passTime = 10 * time.Second
)

// putFile lets an import read a file of a local caller by itself: sending a
// large one through a socket takes as much time as unpacking it. After 101 one
// byte with the descriptor comes, and a second answer goes when it is read.
// As long as that lasts the caller has to keep the connection.
func (d *Daemon) putFile(w http.ResponseWriter, r *http.Request, op *operation) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeError(w, api.Internal("cannot take a file: %v", err))
		return
	}
	defer conn.Close()
	answer := &http.Response{StatusCode: http.StatusNoContent, ProtoMajor: 1, ProtoMinor: 1}
	if err := takeFile(context.WithoutCancel(r.Context()), conn, w.Header().Get(api.VersionHeader), op); err != nil {
		d.log.WarnContext(r.Context(), "cannot take a file", "error", err)
		answer = problemAnswer(api.Conflict("operation %s takes no such data now", r.PathValue("id")))
	}
	_ = answer.Write(conn) // the caller is gone
}

func problemAnswer(p *api.Problem) *http.Response {
	body, err := json.Marshal(p)
	if err != nil {
		body = nil // the status says enough
	}
	return &http.Response{StatusCode: p.Status, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}
}

func takeFile(ctx context.Context, conn net.Conn, version string, op *operation) error {
	local, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("the caller is not local")
	}
	if err := local.SetDeadline(time.Now().Add(passTime)); err != nil { // the server had set one
		return err
	}
	_, err := fmt.Fprintf(local, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %s\r\n\r\n",
		fileUpgrade, api.VersionHeader, version)
	if err != nil {
		return err
	}
	f, err := receiveFile(local)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	if err := local.SetDeadline(time.Time{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		_, _ = io.Copy(io.Discard, local)
		cancel(io.ErrUnexpectedEOF) // as when the data itself comes by a connection
	}()
	return op.lend(ctx, ctxReader{ctx, f}, func() {})
}

// receiveFile receives one byte with one descriptor, which has to be that of a
// regular file: a read of anything else may never return.
func receiveFile(conn *net.UnixConn) (*os.File, error) {
	mark, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4*4))
	_, n, _, _, err := conn.ReadMsgUnix(mark, rights) // close-on-exec is set on what arrives
	if err != nil {
		return nil, fmt.Errorf("cannot receive a descriptor: %w", err)
	}
	var fds []int
	msgs, err := unix.ParseSocketControlMessage(rights[:n])
	for i := range msgs {
		got, rightsErr := unix.ParseUnixRights(&msgs[i])
		fds, err = append(fds, got...), errors.Join(err, rightsErr)
	}
	var st unix.Stat_t
	if err == nil && len(fds) == 1 {
		err = unix.Fstat(fds[0], &st)
	}
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		return os.NewFile(uintptr(fds[0]), "input"), nil
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	return nil, errors.Join(errors.New("the caller passed no regular file"), err)
}
