package daemon

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"banger/api"
	"banger/internal/jsonhttp"
	"banger/internal/vm"
)

func TestLeases(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(*leases)
		want int64
	}{
		"nobody comes":        {func(l *leases) { l.expect("a", leaseStart) }, 1},
		"somebody comes":      {func(l *leases) { l.expect("a", leaseStart); l.hold("a") }, 0},
		"he goes":             {func(l *leases) { l.expect("a", leaseStart); l.hold("a")() }, 1},
		"he comes back":       {func(l *leases) { l.hold("a")(); time.Sleep(leaseGrace - time.Second); l.hold("a") }, 0},
		"one of two goes":     {func(l *leases) { leave := l.hold("a"); l.hold("a"); leave() }, 0},
		"both go":             {func(l *leases) { one, two := l.hold("a"), l.hold("a"); one(); two() }, 1},
		"of two VMs":          {func(l *leases) { l.expect("a", leaseStart); l.expect("b", leaseStart); l.hold("b") }, 1},
		"expected while held": {func(l *leases) { l.hold("a"); l.expect("a", leaseStart) }, 0},
		"bangerd ends":        {func(l *leases) { l.expect("b", leaseStart); leave := l.hold("a"); l.close(); leave() }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var expired atomic.Int64
				l := newLeases(func(string) { expired.Add(1) })
				tc.do(l)
				time.Sleep(time.Hour)
				synctest.Wait()
				if n := expired.Load(); n != tc.want {
					t.Errorf("%d ran out, want %d", n, tc.want)
				}
			})
		})
	}
}

// An ephemeral VM goes when the connection that holds its lease breaks, and
// what was under way on it is cancelled.
func TestALeaseThatBreaksDeletesItsVM(t *testing.T) {
	d := bareDaemon(t)
	v, err := d.vms.Create(t.Context(), api.VMSpec{Name: "a", Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	other, err := d.vms.Create(t.Context(), api.VMSpec{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	work := func(ctx context.Context, _ *operation) error { <-ctx.Done(); return context.Cause(ctx) }
	shown := d.vmAPI(v)
	op, err := d.ops.beginOn(t.Context(), "vm.start", "a", &shown, false, work)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(d.routes())
	defer srv.Close()
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+"/v1/vms/a/lease", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req) // answers at once
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	defer resp.Body.Close()
	leave()
	if s := await(t, op); s.Status != api.OperationCancelled || !strings.Contains(s.Error.Detail, "whoever wanted the VM has gone") {
		t.Errorf("%+v", s.Error)
	}
	seq := int64(0)
	err = d.vms.Events(t.Context(), vm.EventQuery{Since: &seq, Follow: true}, func(e api.Event) error {
		if e.State == api.StateDeleted {
			return errSeen
		}
		return nil
	})
	if !errors.Is(err, errSeen) {
		t.Fatal(err)
	}
	if _, err := d.vms.Get(t.Context(), v.ID); err == nil {
		t.Error("it is still there")
	}
	if _, err := d.vms.Get(t.Context(), other.ID); err != nil {
		t.Error(err)
	}
	var p *api.Problem
	err = jsonhttp.Call(t.Context(), http.DefaultClient, http.MethodPost, srv.URL+"/v1/vms/b/lease", nil, nil)
	if ok := errors.As(err, &p); !ok || p.Code != api.CodeConflict {
		t.Errorf("a lease of a VM that has none: %v", err)
	}
}

var errSeen = errors.New("seen")

func TestBangerdsEndIsToldToThoseWhoWatch(t *testing.T) {
	d := bareDaemon(t)
	srv := httptest.NewServer(d.routes())
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	d.end(vm.ErrEnding)
	buf := make([]byte, 4096)
	n, _ := resp.Body.Read(buf)
	if got := string(buf[:n]); !strings.HasPrefix(got, "event: problem\n") || !strings.Contains(got, `"code":"ending"`) {
		t.Errorf("got %q", got)
	}
}
