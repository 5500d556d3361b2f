package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// strict answers as Firecracker 1.12 does: fixed-length JSON bodies, known
// fields only, an id in the path equal to the one in the body.
func strict(t *testing.T, known map[string][]string) (*Client, *[]string) {
	t.Helper()
	var seen []string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Method+" "+r.URL.Path)
		fault := func(msg string) {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": msg})
		}
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, `{"id":"x","state":"Not started","vmm_version":"1.12.1","app_name":"Firecracker"}`)
			return
		}
		if r.ContentLength <= 0 {
			fault("empty body")
			return
		}
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			fault(err.Error())
			return
		}
		for k := range body {
			if !strings.Contains(" "+strings.Join(known[r.URL.Path], " ")+" ", " "+k+" ") {
				fault("unknown field `" + k + "`")
				return
			}
		}
		w.WriteHeader(http.StatusNoContent)
	})
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	srv.Start()
	t.Cleanup(srv.Close)
	return New(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock)
	}, new(Calls)), &seen
}

func TestCallsSendOnlyKnownFields(t *testing.T) {
	c, seen := strict(t, map[string][]string{
		"/machine-config": {"vcpu_count", "mem_size_mib", "smt", "track_dirty_pages"},
		"/boot-source":    {"kernel_image_path", "initrd_path", "boot_args"},
		"/drives/rootfs":  {"drive_id", "path_on_host", "is_root_device", "is_read_only", "cache_type", "io_engine"},
		"/vsock":          {"guest_cid", "uds_path"},
		"/actions":        {"action_type"},
		"/vm":             {"state"},
	})
	ctx := t.Context()
	for _, err := range []error{
		c.SetMachine(ctx, Machine{1, 256}),
		c.SetBoot(ctx, Boot{"/vmlinux", "/initrd", "x"}),
		c.AddDrive(ctx, Drive{ID: "rootfs", Path: "/rootfs", Cache: "Writeback"}),
		c.SetVsock(ctx, Vsock{3, "/run/vsock.sock"}),
		c.Start(ctx),
		c.Pause(ctx),
		c.Resume(ctx),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if info, err := c.Info(ctx); err != nil || info.Version != "1.12.1" || info.State != "Not started" {
		t.Errorf("Info = %+v, %v", info, err)
	}
	if len(*seen) != 8 {
		t.Errorf("calls: %v", *seen)
	}
}

func TestFaultIsTyped(t *testing.T) {
	c, _ := strict(t, nil)
	err := c.Start(t.Context())
	if f, ok := errors.AsType[*Fault](err); !ok || !strings.Contains(f.Message, "action_type") {
		t.Fatalf("got %v", err)
	}
}
