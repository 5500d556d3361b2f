package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/jsonhttp"
)

// FileProtocol is what a request upgrades to that passes a file: after 101 one
// PassFDByte follows with the descriptor, and then a second answer comes.
const FileProtocol = "banger-file"

// passFile lets the daemon at the other end of conn read f, and returns when it
// has.
func passFile(ctx context.Context, conn *net.UnixConn, url string, f *os.File) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", FileProtocol)
	if op := jsonhttp.Operation(ctx); op != "" {
		req.Header.Set(jsonhttp.OperationHeader, op)
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	r := bufio.NewReaderSize(io.LimitReader(conn, maxAnswerHead), 4096)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return fmt.Errorf("cannot read the answer: %w", err)
	}
	if err := checkAPI(resp.Header); err != nil {
		return err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var sendErr error
		if err := raw.Control(func(fd uintptr) {
			_, _, sendErr = conn.WriteMsgUnix([]byte{PassFDByte}, unix.UnixRights(int(fd)), nil)
		}); err != nil || sendErr != nil {
			return fmt.Errorf("cannot pass the file: %w", errors.Join(err, sendErr))
		}
		if resp, err = http.ReadResponse(r, req); err != nil {
			return fmt.Errorf("cannot read the answer: %w", err)
		}
	}
	defer resp.Body.Close()
	return jsonhttp.DecodeAnswer(resp, nil)
}
