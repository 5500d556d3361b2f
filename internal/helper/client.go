package helper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/jsonhttp"
)

// The helper refuses more than 64 calls at once instead of letting them wait, so
// that is done here. Kills have turns of their own: they end what other calls may
// wait for.
const (
	maxCalls = 48
	maxKills = 12
)

// Client calls the helper. It is safe for concurrent use.
type Client struct {
	http  *http.Client
	turns chan struct{}
	kills chan struct{}
}

// NewClient returns a client of the helper listening on socket.
func NewClient(socket string) *Client {
	return &Client{
		http:  jsonhttp.NewHTTPClient(func(ctx context.Context) (net.Conn, error) { return dial(ctx, socket) }),
		turns: make(chan struct{}, maxCalls),
		kills: make(chan struct{}, maxKills),
	}
}

// fullQueue is the pause between two attempts at a socket with as many callers waiting
// as it takes; nobody tells when there are fewer.
const fullQueue = 10 * time.Millisecond

func dial(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	for {
		c, err := d.DialContext(ctx, "unix", socket)
		if !errors.Is(err, unix.EAGAIN) {
			return c, err
		}
		select {
		case <-time.After(fullQueue):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func call[Out any](ctx context.Context, c *Client, verb string, in any) (Out, error) {
	return callInTurn[Out](ctx, c, c.turns, verb, in)
}

func callInTurn[Out any](ctx context.Context, c *Client, turns chan struct{}, verb string, in any) (out Out, err error) {
	select {
	case turns <- struct{}{}:
		defer func() { <-turns }()
	case <-ctx.Done():
		return out, ctx.Err()
	}
	err = jsonhttp.Call(ctx, c.http, http.MethodPost, "http://helper/v1/"+verb, in, &out)
	return out, plain(verb, err)
}

// plain says in a person's words what happened to a call that got no answer.
func plain(verb string, err error) error {
	broken, ok := errors.AsType[*url.Error](err)
	switch {
	case !ok:
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return fmt.Errorf("banger-helper ended in the middle of %s: %w", verb, broken.Err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED): // ended so often that systemd gave up, or was stopped
		return api.Problemf(http.StatusServiceUnavailable, api.CodeUnavailable, "cannot have banger-helper do %s: %v", verb, broken.Err).
			WithHint("`sudo banger system restart`; `systemctl status banger-helper.socket banger-helper.service` shows why it is not there")
	}
	return fmt.Errorf("cannot have banger-helper do %s: %w", verb, broken.Err)
}

// Reserve assigns the VM's slot, or returns the one it has.
func (c *Client) Reserve(ctx context.Context, id string) (Slot, error) {
	return call[Slot](ctx, c, "vm.reserve", ReserveRequest{ID: id})
}

// Release frees the slot. It refuses while the VM's unit runs.
func (c *Client) Release(ctx context.Context, id string) error {
	_, err := call[Empty](ctx, c, "vm.release", VMRequest{ID: id})
	return err
}

// PutBlob stores a root-owned copy of a file below the state directory.
func (c *Client) PutBlob(ctx context.Context, path string) (Blob, error) {
	return call[Blob](ctx, c, "blob.put", BlobPutRequest{Path: path})
}

// GCBlobs removes the blobs that are not in keep and in no jail.
func (c *Client) GCBlobs(ctx context.Context, keep []string) error {
	_, err := call[Empty](ctx, c, "blob.gc", BlobGCRequest{Keep: keep})
	return err
}

// Attach makes the VM's root disk of base and overlay.
func (c *Client) Attach(ctx context.Context, r AttachRequest) (Attached, error) {
	return call[Attached](ctx, c, "vm.attach", r)
}

// Grow makes the VM's work disk as large as its file.
func (c *Client) Grow(ctx context.Context, id string) (Disk, error) {
	return call[Disk](ctx, c, "vm.grow", GrowRequest{ID: id})
}

// Fsck checks a disk of a VM that does not run.
func (c *Client) Fsck(ctx context.Context, r FsckRequest) (Checked, error) {
	return call[Checked](ctx, c, "vm.fsck", r)
}

// EnsureBridge makes the bridge and its rules, or mends them.
func (c *Client) EnsureBridge(ctx context.Context) (Network, error) {
	return call[Network](ctx, c, "bridge.ensure", Empty{})
}

// ApplyNetwork sets what guests may do, in one transaction.
func (c *Client) ApplyNetwork(ctx context.Context, r NetworkRequest) error {
	_, err := call[Empty](ctx, c, "network.apply", r)
	return err
}

// Launch starts the VMM and returns once its API socket is there; it may take a moment
// more to listen.
func (c *Client) Launch(ctx context.Context, r LaunchRequest) (Launched, error) {
	return call[Launched](ctx, c, "vm.launch", r)
}

// Handover tells the helper that Firecracker has opened its devices.
func (c *Client) Handover(ctx context.Context, id string) error {
	_, err := call[Empty](ctx, c, "vm.handover", VMRequest{ID: id})
	return err
}

// Kill stops the VM's unit with SIGKILL and waits for its end.
func (c *Client) Kill(ctx context.Context, id string) error {
	_, err := callInTurn[Empty](ctx, c, c.kills, "vm.kill", KillRequest{ID: id})
	return err
}

// BeginKill is Kill without the wait.
func (c *Client) BeginKill(ctx context.Context, id string) error {
	_, err := callInTurn[Empty](ctx, c, c.kills, "vm.kill", KillRequest{ID: id, NoWait: true})
	return err
}

// Cleanup removes whatever the VM holds in the kernel; idempotent.
func (c *Client) Cleanup(ctx context.Context, id string) error {
	_, err := call[Empty](ctx, c, "vm.cleanup", VMRequest{ID: id})
	return err
}

// Check returns facts for preflight and doctor.
func (c *Client) Check(ctx context.Context) (HostFacts, error) {
	return call[HostFacts](ctx, c, "host.check", Empty{})
}
