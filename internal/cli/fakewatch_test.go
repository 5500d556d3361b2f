package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"banger/api"
	"banger/internal/jsonhttp"
)

// watchRoutes are those that look at VMs, and change them without an operation
// of their own.
func (d *fakeDaemon) watchRoutes(mux *http.ServeMux) {
	mux.HandleFunc("PATCH /v1/vms/{ref}", d.setVM)
	mux.HandleFunc("POST /v1/vms/prune", d.prune)
	mux.HandleFunc("GET /v1/events", d.vmEvents)
	mux.HandleFunc("GET /v1/operations", d.listOps)
	mux.HandleFunc("GET /v1/operations/{id}", d.getOp)
	mux.HandleFunc("GET /v1/vms/{ref}/health", d.answers(func(vm api.VM) any {
		return api.Health{Name: vm.Name, ID: vm.ID, Phase: "ready", Milliseconds: 2.5, Guest: api.Guest{Kernel: "6.1", Init: "/sbin/init", Agent: "v9"}}
	}))
	mux.HandleFunc("GET /v1/vms/{ref}/ports", d.answers(func(api.VM) any {
		return []api.Port{{Protocol: "tcp", Address: "0.0.0.0", Port: 22, Process: "sshd"}}
	}))
	mux.HandleFunc("GET /v1/vms/{ref}/stats", d.stats)
	mux.HandleFunc("GET /v1/vms/{ref}/logs", d.logs)
}

// lease deletes its VM when it breaks and nobody else holds one.
func (d *fakeDaemon) lease(w http.ResponseWriter, r *http.Request) {
	vm, ok := d.find(r.PathValue("ref"))
	if !ok {
		jsonhttp.WriteError(w, api.NotFound("there is no VM %s", r.PathValue("ref")))
		return
	}
	d.mu.Lock()
	d.leases = append(d.leases, vm.ID)
	d.mu.Unlock()
	w.WriteHeader(200)
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.Index(d.leases, vm.ID)
	if d.leases = slices.Delete(d.leases, i, i+1); !slices.Contains(d.leases, vm.ID) {
		delete(d.vms, vm.Name)
	}
}

// answers is a question that only a running VM can answer.
func (d *fakeDaemon) answers(with func(api.VM) any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		vm, ok := d.find(r.PathValue("ref"))
		switch {
		case !ok:
			jsonhttp.WriteError(w, api.NotFound("there is no VM %s", r.PathValue("ref")))
		case vm.State == api.StatePaused:
			jsonhttp.WriteError(w, api.Problemf(409, api.CodePaused, "VM %s is paused", vm.Name).WithHint("banger vm resume %s", vm.Name))
		case vm.State != api.StateRunning:
			jsonhttp.WriteError(w, api.Problemf(409, api.CodeNotRunning, "VM %s is %s", vm.Name, vm.State))
		default:
			jsonhttp.Write(w, 200, with(vm))
		}
	}
}

// stats tells two samples and the VM's end to who watches.
func (d *fakeDaemon) stats(w http.ResponseWriter, r *http.Request) {
	sample := func(vm api.VM, n int64) api.Stats {
		return api.Stats{Name: vm.Name, ID: vm.ID, At: time.Unix(1700000000+n, 0), CPUMicros: 500000 * n, MemoryBytes: 64 << 20, MemoryLimit: 1 << 30,
			ReadBytes: 1 << 20, WriteBytes: 2 << 20, RxBytes: 3 << 10, TxBytes: 4 << 10, Tasks: 3}
	}
	vm, ok := d.find(r.PathValue("ref"))
	if r.FormValue("watch") != "true" || !ok || vm.State != api.StateRunning {
		d.answers(func(vm api.VM) any { return sample(vm, 3) })(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for n := range int64(2) {
		writeEvent(w, "stats", sample(vm, n+1))
	}
	writeEvent(w, "problem", api.Problemf(409, api.CodeNotRunning, "it is stopped"))
}

func writeEvent(w http.ResponseWriter, kind string, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		raw = []byte(err.Error())
	}
	_, _ = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, raw)
	_ = http.NewResponseController(w).Flush()
}

func (d *fakeDaemon) logs(w http.ResponseWriter, r *http.Request) {
	vm, ok := d.find(r.PathValue("ref"))
	if !ok {
		jsonhttp.WriteError(w, api.NotFound("there is no VM %s", r.PathValue("ref")))
		return
	}
	w.Header().Set("Trailer", "Banger-Problem")
	_, _ = fmt.Fprintf(w, "\x1b[32m%s\x1b[0m boots\r\nlogin: ", vm.Name)
	if r.FormValue("follow") == "true" {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	if vm.State == api.StateFailed {
		w.Header().Set("Banger-Problem", `{"status":500,"code":"internal","detail":"the journal is broken"}`)
	}
}

func (d *fakeDaemon) vmEvents(w http.ResponseWriter, r *http.Request) {
	if ref := r.FormValue("vm"); ref != "" {
		if _, ok := d.find(ref); !ok {
			jsonhttp.WriteError(w, api.NotFound("there is no VM %s", ref))
			return
		}
	}
	w.Header().Set("Content-Type", "text/event-stream")
	at := time.Unix(1700000000, 0)
	for i, e := range []api.Event{{Kind: api.EventMissed}, {Kind: api.EventSnapshot, ID: vmID, Name: "box", State: api.StateRunning},
		{Kind: api.EventState, ID: vmID, Name: "box", State: api.StateFailed, Reason: "killed\x1b"},
		{Kind: api.EventRenamed, ID: vmID, Name: "crate", State: api.StateFailed}, {Kind: api.EventState, ID: vmID, Name: "crate", State: api.StateDeleted}} {
		e.Seq, e.At = int64(i+1), at
		writeEvent(w, "vm", e)
	}
	if r.FormValue("follow") == "true" && r.FormValue("vm") == "" {
		<-r.Context().Done()
	}
}

func (d *fakeDaemon) setVM(w http.ResponseWriter, r *http.Request) {
	vm, ok := d.find(r.PathValue("ref"))
	var c api.VMChange
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil || !ok {
		jsonhttp.WriteError(w, api.NotFound("there is no VM %s", r.PathValue("ref")))
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changes = append(d.changes, c)
	if c.VCPU != nil && vm.State == api.StateRunning {
		vm.Stale = append(vm.Stale, "vcpu")
	}
	if c.Name != nil {
		delete(d.vms, vm.Name)
		vm.Name = *c.Name
	}
	d.vms[vm.Name] = vm
	jsonhttp.Write(w, 200, vm)
}

// prune has no answer of its own to a request that is no dry run but those of
// its operations, one at a time.
func (d *fakeDaemon) prune(w http.ResponseWriter, r *http.Request) {
	var q api.PruneRequest
	_ = json.NewDecoder(r.Body).Decode(&q)
	out := api.Pruned{VMs: []api.VM{}}
	d.mu.Lock()
	for _, name := range slices.Sorted(maps.Keys(d.vms)) {
		vm := d.vms[name]
		if vm.State != api.StateStopped || q.Only != nil && !slices.Contains(q.Only, vm.ID) {
			continue
		}
		out.VMs = append(out.VMs, vm)
		if !q.DryRun {
			delete(d.vms, name)
			op := &fakeOp{Operation: api.Operation{ID: "op-prune-" + name, Kind: "vm.prune", Target: name, Status: api.OperationSucceeded, Stages: []api.Stage{}},
				done: make(chan struct{})}
			close(op.done)
			d.ops[op.ID] = op
			out.Operations = append(out.Operations, op.Operation)
		}
	}
	d.mu.Unlock()
	jsonhttp.Write(w, 202, out)
}

func (d *fakeDaemon) listOps(w http.ResponseWriter, _ *http.Request) {
	d.mu.Lock()
	out := []api.Operation{}
	for _, id := range slices.Sorted(maps.Keys(d.ops)) {
		out = append(out, d.ops[id].Operation)
	}
	raw, _ := json.Marshal(out) // under the lock: the work goes on
	d.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(raw)
}

func (d *fakeDaemon) getOp(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	op, ok := d.ops[r.PathValue("id")]
	var raw []byte
	if ok {
		raw, _ = json.Marshal(op.Operation)
	}
	d.mu.Unlock()
	if !ok {
		jsonhttp.WriteError(w, api.NotFound("there is no operation %s", r.PathValue("id")))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(raw)
}
