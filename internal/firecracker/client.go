// Package firecracker is a client of the Firecracker API, one typed call each.
// It sends only fields that version 1.12 knows, since Firecracker refuses any
// it does not. Source of names and limits: Firecracker's swagger file.
package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"banger/internal/jsonhttp"
)

// maxAnswer bounds what a VMM taken over by its guest can make us read.
const maxAnswer = 1 << 20

// Client talks to one Firecracker process.
type Client struct {
	http  *http.Client
	calls *Calls
}

// New returns a client whose connections come from dial. Calls are those of the
// whole process.
func New(dial jsonhttp.Dialer, calls *Calls) *Client {
	return &Client{jsonhttp.NewHTTPClient(dial), calls}
}

// Close drops idle connections; Firecracker keeps at most ten. One that waits for
// an answer closes when that has come.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Fault is Firecracker's refusal of a request.
type Fault struct {
	Call    string
	Message string
}

func (f *Fault) Error() string {
	return fmt.Sprintf("firecracker refused %s: %s", f.Call, f.Message)
}

// Info is GET /.
type Info struct {
	State   string `json:"state"` // "Not started", "Running" or "Paused"
	Version string `json:"vmm_version"`
}

// Info asks who answers and in which state.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var i Info
	err := c.do(ctx, http.MethodGet, "/", nil, &i)
	return i, err
}

// Machine is PUT /machine-config.
type Machine struct {
	VCPU      int `json:"vcpu_count"`
	MemoryMiB int `json:"mem_size_mib"`
}

// SetMachine sets CPU and memory; before Start only.
func (c *Client) SetMachine(ctx context.Context, m Machine) error {
	return c.do(ctx, http.MethodPut, "/machine-config", m, nil)
}

// Boot is PUT /boot-source; paths are inside the jail.
type Boot struct {
	Kernel string `json:"kernel_image_path"`
	Initrd string `json:"initrd_path,omitempty"`
	Args   string `json:"boot_args"` // logged by Firecracker: no secrets
}

// SetBoot sets what is booted; the files are opened now.
func (c *Client) SetBoot(ctx context.Context, b Boot) error {
	return c.do(ctx, http.MethodPut, "/boot-source", b, nil)
}

// SetMetrics has Firecracker write its counters to path, a line of JSON now,
// every minute and at its end.
func (c *Client) SetMetrics(ctx context.Context, path string) error {
	return c.do(ctx, http.MethodPut, "/metrics", map[string]string{"metrics_path": path}, nil)
}

// Drive is PUT /drives/ID. Cache "Writeback" lets a guest's flush reach the
// host's disk; Firecracker's default does not.
type Drive struct {
	ID       string `json:"drive_id"` // letters, digits and _ only
	Path     string `json:"path_on_host"`
	Root     bool   `json:"is_root_device"`
	ReadOnly bool   `json:"is_read_only"`
	Cache    string `json:"cache_type"`
}

// AddDrive adds a drive; the file is opened now.
func (c *Client) AddDrive(ctx context.Context, d Drive) error {
	return c.do(ctx, http.MethodPut, "/drives/"+d.ID, d, nil)
}

// UpdateDrive makes Firecracker look at a drive's file again while the guest
// runs: the guest is told of its new size.
func (c *Client) UpdateDrive(ctx context.Context, id, path string) error {
	return c.do(ctx, http.MethodPatch, "/drives/"+id, map[string]string{"drive_id": id, "path_on_host": path}, nil)
}

// Card is PUT /network-interfaces/ID; Firecracker opens the tap now, in the
// network namespace in which it runs.
type Card struct {
	ID  string `json:"iface_id"`
	Tap string `json:"host_dev_name"`
	MAC string `json:"guest_mac"`
}

// AddCard adds a network card.
func (c *Client) AddCard(ctx context.Context, n Card) error {
	return c.do(ctx, http.MethodPut, "/network-interfaces/"+n.ID, n, nil)
}

// Vsock is PUT /vsock; Firecracker binds the socket at Path now.
type Vsock struct {
	CID  int    `json:"guest_cid"`
	Path string `json:"uds_path"`
}

// SetVsock adds the vsock device.
func (c *Client) SetVsock(ctx context.Context, v Vsock) error {
	return c.do(ctx, http.MethodPut, "/vsock", v, nil)
}

// Start boots the guest. Success does not mean that the guest came up.
func (c *Client) Start(ctx context.Context) error {
	return c.do(ctx, http.MethodPut, "/actions", map[string]string{"action_type": "InstanceStart"}, nil)
}

// Pause halts the vCPUs; repeating it is no error. The guest's sockets take
// connections then and never answer.
func (c *Client) Pause(ctx context.Context) error { return c.setState(ctx, "Paused") }

// Resume lets a paused guest go on; repeating it is no error.
func (c *Client) Resume(ctx context.Context) error { return c.setState(ctx, "Resumed") }

func (c *Client) setState(ctx context.Context, state string) error {
	return c.do(ctx, http.MethodPatch, "/vm", map[string]string{"state": state}, nil)
}

// lateAnswer is how long an answer is taken that nobody waits for any more, from a
// VMM that is frozen, say. One that never answers holds a descriptor for so long.
const lateAnswer = time.Hour

// do gives up waiting when ctx ends, but not the answer, see Calls.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	type answer struct {
		raw []byte
		err error
	}
	failed := func(err error) error {
		return fmt.Errorf("cannot ask firecracker for %s %s: %w", method, path, err)
	}
	if ctx.Err() != nil {
		return failed(context.Cause(ctx))
	}
	if err := c.calls.begin(); err != nil {
		return failed(err)
	}
	answered := make(chan answer, 1)
	go func() {
		defer c.calls.end()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lateAnswer)
		defer cancel()
		raw, err := c.ask(ctx, method, path, in)
		answered <- answer{raw, err}
	}()
	select {
	case a := <-answered:
		if a.err != nil || out == nil {
			return a.err
		}
		if err := json.Unmarshal(a.raw, out); err != nil {
			return fmt.Errorf("cannot decode firecracker's answer to %s %s: %w", method, path, err)
		}
		return nil
	case <-ctx.Done():
		return failed(context.Cause(ctx))
	}
}

func (c *Client) ask(ctx context.Context, method, path string, in any) ([]byte, error) {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(raw) // Firecracker takes a chunked body for an empty one
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://firecracker"+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot ask firecracker for %s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("cannot read firecracker's answer to %s %s: %w", method, path, err)
	}
	if resp.StatusCode >= 300 {
		var fault struct {
			Message string `json:"fault_message"`
		}
		if json.Unmarshal(raw, &fault) != nil || fault.Message == "" {
			fault.Message = fmt.Sprintf("status %d: %.200q", resp.StatusCode, raw)
		}
		return nil, &Fault{Call: method + " " + path, Message: fault.Message}
	}
	return raw, nil
}
