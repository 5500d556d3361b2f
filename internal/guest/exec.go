package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"banger/api"
	"banger/internal/guest/stream"
	"banger/internal/jsonhttp"
)

// upgradeTime bounds the wait for an agent that was just connected to.
const upgradeTime = 30 * time.Second

// maxUpgrade bounds the answer, a problem included.
const maxUpgrade = 64 << 10

// StartExec starts a command over conn, a new connection to ControlPort. The
// caller closes conn, after which the stream is over; while the command runs,
// that hangs up on it. ctx is for the start only.
func StartExec(ctx context.Context, conn net.Conn, e Exec) (*stream.Host, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the command: %w", err)
	}
	if len(body) > MaxRequest {
		return nil, fmt.Errorf("cannot start the command: its %d bytes are more than %d", len(body), MaxRequest)
	}
	if err := conn.SetDeadline(time.Now().Add(upgradeTime)); err != nil {
		return nil, fmt.Errorf("cannot bound the start of the command: %w", err)
	}
	stop := interruptOn(ctx, conn)
	host, err := upgrade(conn, body)
	if !stop() || ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, fmt.Errorf("cannot start the command: %w", err)
	}
	return host, nil
}

func upgrade(conn net.Conn, body []byte) (*stream.Host, error) {
	request := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n", stream.Path, stream.Protocol, len(body))
	if _, err := conn.Write(append(request, body...)); err != nil {
		return nil, err
	}
	r := bufio.NewReader(io.LimitReader(conn, maxUpgrade))
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		early, err := r.Peek(r.Buffered())
		return stream.NewHost(io.MultiReader(bytes.NewReader(early), conn), conn), err
	}
	defer resp.Body.Close()
	err = cleanProblem(jsonhttp.DecodeAnswer(resp, nil))
	switch p, ok := errors.AsType[*api.Problem](err); {
	case ok && p.Status == http.StatusNotFound:
		return nil, p.WithHint("the VM was started by an older banger; stop and start it")
	case err != nil:
		return nil, err
	}
	return nil, api.Internal("the agent answers %s", printable(resp.Status))
}
