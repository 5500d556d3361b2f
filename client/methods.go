package client

import (
	"context"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"banger/api"
	"banger/internal/jsonhttp"
)

// Version of the daemon. It answers whatever API the daemon speaks.
func (c *Client) Version(ctx context.Context) (api.Version, error) {
	return call[api.Version](ctx, c, http.MethodGet, "/v1/version", nil)
}

// Doctor checks the daemon's host.
func (c *Client) Doctor(ctx context.Context) ([]api.Check, error) {
	return call[[]api.Check](ctx, c, http.MethodGet, "/v1/doctor", nil)
}

// Repair has the daemon mend what these checks found, and returns them made
// again.
func (c *Client) Repair(ctx context.Context, r api.RepairRequest) ([]api.Check, error) {
	return call[[]api.Check](ctx, c, http.MethodPost, "/v1/doctor/repair", r)
}

func vmPath(ref, rest string) string { return "/v1/vms/" + url.PathEscape(ref) + rest }

// VMs lists all VMs.
func (c *Client) VMs(ctx context.Context) ([]api.VM, error) {
	return call[[]api.VM](ctx, c, http.MethodGet, "/v1/vms", nil)
}

// VM finds one by name, id, or a beginning of the id that only it has.
func (c *Client) VM(ctx context.Context, ref string) (api.VM, error) {
	return call[api.VM](ctx, c, http.MethodGet, vmPath(ref, ""), nil)
}

// CreateVM makes a VM and, unless spec.NoStart, starts it.
func (c *Client) CreateVM(ctx context.Context, spec api.VMSpec) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/v1/vms", spec)
}

// StartVM starts a VM that does not run. With repair its disks are mended even
// if that loses files.
func (c *Client) StartVM(ctx context.Context, ref string, repair bool) (api.Operation, error) {
	path := vmPath(ref, "/start")
	if repair {
		path += "?repair=true"
	}
	return call[api.Operation](ctx, c, http.MethodPost, path, nil)
}

// StopVM asks the guest to end and kills it after timeout; 0 means the
// daemon's default.
func (c *Client) StopVM(ctx context.Context, ref string, timeout time.Duration) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(ref, "/stop"+timeoutQuery(timeout)), nil)
}

func timeoutQuery(timeout time.Duration) string {
	if timeout <= 0 {
		return ""
	}
	return "?timeout=" + strconv.Itoa(int(math.Ceil(timeout.Seconds())))
}

// RestartVM stops a VM as StopVM does and starts it again.
func (c *Client) RestartVM(ctx context.Context, ref string, timeout time.Duration) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(ref, "/restart"+timeoutQuery(timeout)), nil)
}

// PauseVM halts a VM that runs.
func (c *Client) PauseVM(ctx context.Context, ref string) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(ref, "/pause"), nil)
}

// ResumeVM lets a paused VM go on.
func (c *Client) ResumeVM(ctx context.Context, ref string) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(ref, "/resume"), nil)
}

// ChangeVM gives a VM other settings and returns it as it is then; VM.Stale
// names what holds only after a restart.
func (c *Client) ChangeVM(ctx context.Context, ref string, change api.VMChange) (api.VM, error) {
	return call[api.VM](ctx, c, http.MethodPatch, vmPath(ref, ""), change)
}

// PruneVMs deletes VMs that do not run, or tells which it would delete.
func (c *Client) PruneVMs(ctx context.Context, r api.PruneRequest) (api.Pruned, error) {
	return call[api.Pruned](ctx, c, http.MethodPost, "/v1/vms/prune", r)
}

// Health asks a guest's agent how it is.
func (c *Client) Health(ctx context.Context, ref string) (api.Health, error) {
	return call[api.Health](ctx, c, http.MethodGet, vmPath(ref, "/health"), nil)
}

// Ports lists what listens in a guest.
func (c *Client) Ports(ctx context.Context, ref string) ([]api.Port, error) {
	return call[[]api.Port](ctx, c, http.MethodGet, vmPath(ref, "/ports"), nil)
}

// KillVM ends a VM at once.
func (c *Client) KillVM(ctx context.Context, ref string) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, vmPath(ref, "/kill"), nil)
}

// DeleteVM removes a VM and its disk; with force also one that runs.
func (c *Client) DeleteVM(ctx context.Context, ref string, force bool) (api.Operation, error) {
	path := vmPath(ref, "")
	if force {
		path += "?force=true"
	}
	return call[api.Operation](ctx, c, http.MethodDelete, path, nil)
}

// Certify has a public key (an authorized_keys line) certified for SSH
// sessions into the VMs.
func (c *Client) Certify(ctx context.Context, publicKey string) (api.Certificate, error) {
	return call[api.Certificate](ctx, c, http.MethodPost, "/v1/ssh/certificates", api.CertificateRequest{PublicKey: publicKey})
}

// Images lists the imported root filesystems.
func (c *Client) Images(ctx context.Context) ([]api.Image, error) {
	return call[[]api.Image](ctx, c, http.MethodGet, "/v1/images", nil)
}

// ImportImage begins an import; the data follows by SendInput.
func (c *Client) ImportImage(ctx context.Context, spec api.ImportSpec) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/v1/images", spec)
}

// DeleteImage removes an image no VM uses.
func (c *Client) DeleteImage(ctx context.Context, name string) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, "/v1/images/"+url.PathEscape(name), nil)
	return err
}

// Kernels lists the imported guest kernels.
func (c *Client) Kernels(ctx context.Context) ([]api.Kernel, error) {
	return call[[]api.Kernel](ctx, c, http.MethodGet, "/v1/kernels", nil)
}

// ImportKernel begins an import; the data follows by SendInput.
func (c *Client) ImportKernel(ctx context.Context, spec api.ImportSpec) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/v1/kernels", spec)
}

// DeleteKernel removes a kernel no VM uses.
func (c *Client) DeleteKernel(ctx context.Context, name string) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, "/v1/kernels/"+url.PathEscape(name), nil)
	return err
}

func operationPath(id, rest string) string { return "/v1/operations/" + url.PathEscape(id) + rest }

// Operations lists the changes in progress and those that ended lately.
func (c *Client) Operations(ctx context.Context) ([]api.Operation, error) {
	return call[[]api.Operation](ctx, c, http.MethodGet, "/v1/operations", nil)
}

// Operation finds one.
func (c *Client) Operation(ctx context.Context, id string) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodGet, operationPath(id, ""), nil)
}

// CancelOperation asks an operation to undo itself. Watch tells when it has.
func (c *Client) CancelOperation(ctx context.Context, id string) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, operationPath(id, ""), nil)
	return err
}

// SendFile is SendInput for a regular file, from where it is read. A local daemon
// gets the file itself and reads on.
func (c *Client) SendFile(ctx context.Context, id string, f *os.File) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	local, ok := conn.(*net.UnixConn)
	if !ok {
		return c.SendInput(ctx, id, f)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if err = passFile(ctx, local, base+operationPath(id, "/input"), f); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return c.explain(ctx, err)
}

// SendInput streams the data an import waits for. It returns once the daemon
// has read it all; how the import ends is for Watch to say.
func (c *Client) SendInput(ctx context.Context, id string, data io.Reader) error {
	// NopCloser: the caller closes what the caller opened.
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, base+operationPath(id, "/input"), io.NopCloser(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer resp.Body.Close()
	if err := jsonhttp.DecodeAnswer(resp, nil); err != nil {
		return c.explain(ctx, err)
	}
	return nil
}
