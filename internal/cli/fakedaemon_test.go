package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/client"
	"banger/internal/jsonhttp"
)

// fakeDaemon answers as bangerd does, on a Unix socket, for VMs that are a
// fakeGuest each.
type fakeDaemon struct {
	t      testing.TB
	socket string
	guest  *fakeGuest
	stop   func() // takes the socket away
	ctx    context.Context

	mu        sync.Mutex
	vms       map[string]api.VM // by name
	ops       map[string]*fakeOp
	inputs    map[string]string // what imports received
	calls     []string
	startFail *api.Problem  // starts fail with it
	hang      chan struct{} // starts wait for it, or for being cancelled
	apiHeader string
	noFD      bool
	leases    []string       // ids of VMs, once for each holder
	changes   []api.VMChange // of all VMs
	checks    []api.Check    // of doctor; nil = two of them
}

type fakeOp struct {
	api.Operation
	cancel context.CancelFunc
	done   chan struct{}
}

// vmID is the id of every VM of a fakeDaemon that was there from the start.
const vmID = "0123456789ab"

func newFakeDaemon(t testing.TB) *fakeDaemon {
	t.Helper()
	dir := t.TempDir()
	d := &fakeDaemon{t: t, socket: filepath.Join(dir, "d.sock"), ctx: t.Context(), apiHeader: "1",
		vms: map[string]api.VM{}, ops: map[string]*fakeOp{}, inputs: map[string]string{}}
	d.guest = newFakeGuest(t)
	d.stop = d.listen()
	return d
}

// listen serves until the test ends or the returned function is called.
func (d *fakeDaemon) listen() (stop func()) {
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		d.t.Fatal(err)
	}
	server := jsonhttp.NewServer(d.routes())
	go func() { _ = server.Serve(l) }()
	stop = func() {
		_ = l.Close() // the server may not know it yet
		_ = server.Close()
	}
	d.t.Cleanup(stop)
	return stop
}

func (d *fakeDaemon) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) {
		n := 0
		_, _ = fmt.Sscan(d.apiHeader, &n)
		jsonhttp.Write(w, 200, api.Version{Version: "v9", API: n, Owner: "me"})
	})
	mux.HandleFunc("GET /v1/vms", d.listVMs)
	mux.HandleFunc("POST /v1/vms", d.createVM)
	mux.HandleFunc("GET /v1/vms/{ref}", d.getVM)
	mux.HandleFunc("DELETE /v1/vms/{ref}", d.deleteVM)
	mux.HandleFunc("POST /v1/vms/{ref}/{verb}", d.changeVM)
	mux.HandleFunc("POST /v1/vms/{ref}/dial", d.dial)
	mux.HandleFunc("POST /v1/vms/{ref}/lease", d.lease)
	d.watchRoutes(mux)
	mux.HandleFunc("POST /v1/images", d.beginImport)
	mux.HandleFunc("GET /v1/images", func(w http.ResponseWriter, _ *http.Request) { jsonhttp.Write(w, 200, []api.Image{}) })
	mux.HandleFunc("PUT /v1/operations/{id}/input", d.input)
	mux.HandleFunc("GET /v1/operations/{id}/events", d.events)
	mux.HandleFunc("DELETE /v1/operations/{id}", d.cancelOp)
	mux.HandleFunc("GET /v1/doctor", func(w http.ResponseWriter, _ *http.Request) {
		if d.checks == nil {
			d.checks = []api.Check{{ID: "kvm", Status: "pass", Found: "works", Why: "no VM runs without it"}, {ID: "firecracker", Status: "warn", Found: "1.12.1", Why: "old", Fix: "update"}}
		}
		jsonhttp.Write(w, 200, d.checks)
	})
	mux.Handle("POST /v1/doctor/repair", jsonhttp.Handle(func(_ context.Context, r api.RepairRequest) ([]api.Check, error) {
		var after []api.Check
		for _, id := range r.Checks {
			after = append(after, api.Check{ID: id, Status: api.CheckPass, Found: "none"})
		}
		return after, nil
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		d.calls = append(d.calls, r.Method+" "+r.URL.RequestURI())
		d.mu.Unlock()
		if d.apiHeader != "" {
			w.Header().Set(api.VersionHeader, d.apiHeader)
		}
		mux.ServeHTTP(w, r)
	})
}

// begin starts an operation whose work is f.
func (d *fakeDaemon) begin(w http.ResponseWriter, kind, target string, f func(context.Context, *fakeOp) error) {
	d.beginOn(w, kind, target, nil, f)
}

func (d *fakeDaemon) beginOn(w http.ResponseWriter, kind, target string, vm *api.VM, f func(context.Context, *fakeOp) error) {
	if vm != nil {
		first := *vm // f has its own
		vm = &first
	}
	ctx, cancel := context.WithCancel(d.ctx)
	d.mu.Lock()
	op := &fakeOp{Operation: api.Operation{ID: fmt.Sprintf("op-%d", len(d.ops)+1), Kind: kind, Target: target, VM: vm,
		Status: api.OperationRunning, Begun: time.Now(), Stages: []api.Stage{{Name: "boot_firecracker", Detail: "starting firecracker"}}},
		cancel: cancel, done: make(chan struct{})}
	d.ops[op.ID] = op
	first := op.Operation
	first.Stages = slices.Clone(op.Stages) // the work goes on while this is written out
	d.mu.Unlock()
	go func() {
		err := f(ctx, op)
		d.mu.Lock()
		op.Status = api.OperationSucceeded
		if err != nil {
			op.Status, op.Error = api.OperationFailed, jsonhttp.AsProblem(err)
		}
		if ctx.Err() != nil {
			op.Status = api.OperationCancelled
		}
		op.Stages[0].Milliseconds = 1
		d.mu.Unlock()
		close(op.done)
	}()
	jsonhttp.Write(w, 202, first)
}

func (d *fakeDaemon) find(ref string) (api.VM, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, vm := range d.vms {
		if vm.Name == ref || vm.ID == ref {
			return vm, true
		}
	}
	return api.VM{}, false
}

func (d *fakeDaemon) put(vm api.VM) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.vms[vm.Name] = vm
}

func (d *fakeDaemon) names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := []string{}
	for n := range d.vms {
		out = append(out, n)
	}
	return out
}

func (d *fakeDaemon) called() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string{}, d.calls...)
}

func (d *fakeDaemon) listVMs(w http.ResponseWriter, _ *http.Request) {
	list := []api.VM{}
	for _, n := range d.names() {
		vm, _ := d.find(n)
		list = append(list, vm)
	}
	jsonhttp.Write(w, 200, list)
}

func (d *fakeDaemon) createVM(w http.ResponseWriter, r *http.Request) {
	var spec api.VMSpec
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		jsonhttp.WriteError(w, api.BadRequest("%v", err))
		return
	}
	if spec.Name == "" {
		spec.Name = "made-up"
	}
	if _, taken := d.find(spec.Name); taken {
		jsonhttp.WriteError(w, api.Conflict("name %s is taken", spec.Name).WithHint("choose another"))
		return
	}
	d.mu.Lock()
	id := fmt.Sprintf("%012d", len(d.ops)+1)
	d.mu.Unlock()
	vm := api.VM{ID: id, Name: spec.Name, State: api.StateStarting, Image: "debian", Kernel: "host", VCPU: 1, MemoryMiB: 512, CreatedAt: time.Now(),
		Ephemeral: spec.Ephemeral, NAT: spec.NAT != nil && *spec.NAT, Network: spec.Network, Autostart: spec.Autostart, Restart: spec.Restart}
	if spec.DiskBytes != nil {
		vm.DiskBytes = *spec.DiskBytes
	}
	if spec.IdleStopSeconds != nil {
		vm.IdleStopSeconds = *spec.IdleStopSeconds
	}
	for to, value := range map[*int]*int{&vm.CPUWeight: spec.CPUWeight, &vm.IOWeight: spec.IOWeight, &vm.CPULimitMillis: spec.CPULimitMillis} {
		if value != nil {
			*to = *value
		}
	}
	if spec.IOLimitBytes != nil {
		vm.IOLimitBytes = *spec.IOLimitBytes
	}
	d.put(vm)
	d.beginOn(w, "vm.create", spec.Name, &vm, func(ctx context.Context, op *fakeOp) error {
		if d.hang != nil {
			select {
			case <-d.hang:
			case <-ctx.Done():
				vm.State, vm.Reason = api.StateFailed, "cancelled"
				d.put(vm)
				return ctx.Err()
			}
		}
		if d.startFail != nil {
			vm.State, vm.Reason = api.StateFailed, d.startFail.Detail
			d.put(vm)
			return d.startFail
		}
		vm.State = api.StateRunning
		d.put(vm)
		d.mu.Lock()
		op.VM = &vm
		d.mu.Unlock()
		return nil
	})
}

func (d *fakeDaemon) getVM(w http.ResponseWriter, r *http.Request) {
	vm, ok := d.find(r.PathValue("ref"))
	if !ok {
		jsonhttp.WriteError(w, api.NotFound("there is no VM %s", r.PathValue("ref")))
		return
	}
	jsonhttp.Write(w, 200, vm)
}

func (d *fakeDaemon) deleteVM(w http.ResponseWriter, r *http.Request) {
	vm, ok := d.find(r.PathValue("ref"))
	switch {
	case !ok:
		jsonhttp.WriteError(w, api.NotFound("there is no VM %s", r.PathValue("ref")))
		return
	case vm.State == api.StateRunning && r.FormValue("force") != "true":
		jsonhttp.WriteError(w, api.Conflict("VM %s is running", vm.Name).WithHint("add --force"))
		return
	}
	d.begin(w, "vm.delete", vm.Name, func(context.Context, *fakeOp) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.vms, vm.Name)
		return nil
	})
}

func (d *fakeDaemon) changeVM(w http.ResponseWriter, r *http.Request) {
	vm, ok := d.find(r.PathValue("ref"))
	if !ok {
		jsonhttp.WriteError(w, api.NotFound("there is no VM %s", r.PathValue("ref")))
		return
	}
	to := map[string]api.State{"start": api.StateRunning, "stop": api.StateStopped, "kill": api.StateStopped,
		"restart": api.StateRunning, "pause": api.StatePaused, "resume": api.StateRunning}[r.PathValue("verb")]
	d.begin(w, "vm."+r.PathValue("verb"), vm.Name, func(context.Context, *fakeOp) error {
		vm.State = to
		d.put(vm)
		return nil
	})
}

func (d *fakeDaemon) dial(w http.ResponseWriter, r *http.Request) {
	vm, ok := d.find(r.PathValue("ref"))
	switch {
	case !ok:
		jsonhttp.WriteError(w, api.NotFound("there is no VM %s", r.PathValue("ref")))
		return
	case vm.State != api.StateRunning:
		jsonhttp.WriteError(w, api.Conflict("VM %s is %s", vm.Name, vm.State))
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		d.t.Error(err)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	pass := r.Header.Get(client.PassFDHeader) == "1" && !d.noFD
	head := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + client.StreamProtocol + "\r\n" + api.VersionHeader + ": " + d.apiHeader + "\r\n"
	if !pass {
		head += client.FDHeader + ": no\r\n"
	}
	_, _ = io.WriteString(buffered, head+"\r\n")
	_ = buffered.Flush()
	if !pass {
		d.guest.serve(conn)
		return
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		d.t.Error(err)
		return
	}
	_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte{client.PassFDByte}, unix.UnixRights(fds[0]), nil)
	if err != nil && !errors.Is(err, unix.EPIPE) { // a client of another age has left
		d.t.Error(err)
	}
	_ = unix.Close(fds[0])
	_ = conn.Close()
	f := os.NewFile(uintptr(fds[1]), "guest")
	stream, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		d.t.Error(err)
		return
	}
	d.guest.serve(stream)
}

func (d *fakeDaemon) beginImport(w http.ResponseWriter, r *http.Request) {
	var spec api.ImportSpec
	_ = json.NewDecoder(r.Body).Decode(&spec)
	d.begin(w, "image.import", spec.Name, func(ctx context.Context, op *fakeOp) error {
		for ctx.Err() == nil {
			d.mu.Lock()
			got, ok := d.inputs[op.ID]
			d.mu.Unlock()
			if ok && got == "bad" {
				return api.BadRequest("that is no archive")
			}
			if ok {
				return nil
			}
			time.Sleep(time.Millisecond) // a fake may poll
		}
		return ctx.Err()
	})
}

// inputFile is input for a file that is passed.
func (d *fakeDaemon) inputFile(w http.ResponseWriter, r *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		d.t.Error(err)
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
	mark, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(mark, rights)
	if err != nil || mark[0] != client.PassFDByte {
		d.t.Error(err, mark)
		return
	}
	msgs, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(msgs) != 1 {
		d.t.Error(err, len(msgs))
		return
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		d.t.Error(err, fds)
		return
	}
	f := os.NewFile(uintptr(fds[0]), "passed")
	defer f.Close()
	raw, _ := io.ReadAll(f)
	d.mu.Lock()
	d.inputs[r.PathValue("id")] = string(raw)
	d.mu.Unlock()
	_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
}

func (d *fakeDaemon) input(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == client.FileProtocol {
		d.inputFile(w, r)
		return
	}
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	d.mu.Lock()
	d.inputs[r.PathValue("id")] = string(data)
	d.mu.Unlock()
	w.WriteHeader(204)
}

func (d *fakeDaemon) events(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	op, ok := d.ops[r.PathValue("id")]
	d.mu.Unlock()
	if !ok {
		jsonhttp.WriteError(w, api.NotFound("there is no operation %s", r.PathValue("id")))
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	d.event(w, op)
	select {
	case <-op.done:
		d.event(w, op)
	case <-r.Context().Done():
	}
}

func (d *fakeDaemon) event(w http.ResponseWriter, op *fakeOp) {
	d.mu.Lock()
	raw, err := json.Marshal(op.Operation)
	d.mu.Unlock()
	if err != nil {
		d.t.Error(err)
	}
	_, _ = fmt.Fprintf(w, "event: operation\ndata: %s\n\n", raw)
	_ = http.NewResponseController(w).Flush()
}

func (d *fakeDaemon) cancelOp(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	op, ok := d.ops[r.PathValue("id")]
	d.mu.Unlock()
	if !ok {
		jsonhttp.WriteError(w, api.NotFound("there is no operation"))
		return
	}
	op.cancel()
	w.WriteHeader(204)
}
