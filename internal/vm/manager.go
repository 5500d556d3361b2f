// Package vm is the life of virtual machines: their records, the start
// pipeline, and how they end. It owns the rules; kernel objects belong to
// banger-helper and are named after the VM's id, so that writing the state
// "starting" first is enough to find everything again after a crash.
package vm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	petname "github.com/dustinkirkland/golang-petname"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/guest"
	"banger/internal/helper"
	"banger/internal/identity"
	"banger/internal/installed"
	"banger/internal/store"
)

// Helper is what the life of a VM needs of banger-helper.
type Helper interface {
	Reserve(ctx context.Context, id string) (helper.Slot, error)
	Release(ctx context.Context, id string) error
	Attach(ctx context.Context, r helper.AttachRequest) (helper.Attached, error)
	Launch(ctx context.Context, r helper.LaunchRequest) (helper.Launched, error)
	Handover(ctx context.Context, id string) error
	Kill(ctx context.Context, id string) error
	BeginKill(ctx context.Context, id string) error
	Cleanup(ctx context.Context, id string) error
	Grow(ctx context.Context, id string) (helper.Disk, error)
	Fsck(ctx context.Context, r helper.FsckRequest) (helper.Checked, error)
	EnsureBridge(ctx context.Context) (helper.Network, error)
	ApplyNetwork(ctx context.Context, r helper.NetworkRequest) error
}

// Causes of a cancelled context that mean something here.
var (
	// ErrCancelled: a person asked for it.
	ErrCancelled = errors.New("cancelled on request")
	// ErrEnding: bangerd has to end; its next start goes on from the record.
	ErrEnding = errors.New("bangerd is ending")
)

// Kernels gives the helper's names of what a kernel boots.
type Kernels interface {
	// Blobs returns the sha256 of kernel and initrd; resend sends them to the
	// helper again, which has lost them.
	Blobs(ctx context.Context, k *store.Kernel, resend bool) (kernel, initrd string, err error)
}

// Hosts makes the SSH host key of a VM.
type Hosts interface {
	NewHost(id, name string) (identity.HostKey, error)
	UserCA() string
}

// Options are everything a Manager works with.
type Options struct {
	Store   *store.Store
	Helper  Helper
	Kernels Kernels
	Hosts   Hosts
	Disks   Disks
	Names   Names
	Log     *slog.Logger
	Record  installed.Record
	// StateDir holds images/ and vms/.
	StateDir string
	ExitDir  string
	// JailDir holds a directory for each VM; it belongs to JailOwner.
	JailDir   string
	JailOwner int
	// RunDir is in memory: what is in it is gone after a boot of the host, and has
	// room when the disk is full.
	RunDir string
	// ForwardSwitch is paths.ForwardSwitch, but in tests.
	ForwardSwitch string
	// Zone is the domain of the VMs' names.
	Zone string
	// Reserve is what must stay free on the state directory's filesystem, in
	// bytes: a full one makes a dm-snapshot invalid for good.
	Reserve int64
	// Defaults of a VM, and how long a start may take.
	DefaultImage, DefaultKernel string
	DefaultVCPU, DefaultMemory  int
	DefaultDisk                 int64
	DefaultNAT                  bool
	DefaultIdleStop             time.Duration
	StartTimeout                time.Duration
}

// Manager runs VMs. Its methods may be called at the same time; work on one VM
// is done one after the other.
type Manager struct {
	Options
	locks    keyedLocks
	exits    *exitWatch
	events   *events
	spares   spares
	boot     string // boot id of the host
	jails    string // paths.JailDir, but in tests
	guests   attendants
	low      atomic.Bool // the disk is nearly full
	activity activity
	clean    cleanEnds
	sweeps   sweeps
	starting sync.Map      // context.CancelCauseFunc of the starts under way, by VM id
	changes  []changer     // what makes a change true for a VM that runs
	logs     chan struct{} // one for each journalctl

	tasks  sync.WaitGroup // background work on VMs that ended
	calls  firecracker.Calls
	closed context.CancelCauseFunc
	ctx    context.Context
}

// NewManager returns a Manager that has compared its records with the host.
func NewManager(ctx context.Context, o Options) (*Manager, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("cannot read the host's boot id: %w", err)
	}
	m := &Manager{Options: o, events: newEvents(), boot: strings.TrimSpace(string(boot)), jails: o.JailDir,
		logs: make(chan struct{}, logReaders)}
	for _, c := range m.capabilities() {
		m.changes = append(m.changes, c)
	}
	m.ctx, m.closed = context.WithCancelCause(context.WithoutCancel(ctx))
	m.guests.turn = newTurn()
	m.guests.turn <- struct{}{} // taken, while others wait for the comparison
	// Watch first, then look: an end in between is seen twice, never missed.
	if m.exits, err = watchExits(o.ExitDir, m.exited); err != nil {
		return nil, err
	}
	err = m.reconcile(ctx)
	<-m.guests.turn // from now on guests are connected to
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if err := m.autostart(filepath.Join(o.RunDir, "autostarted")); err != nil {
		m.Log.ErrorContext(ctx, "cannot start VMs with the host", "error", err)
	}
	m.tasks.Go(m.stopIdle)
	m.tasks.Go(m.endHalted)
	return m, nil
}

// Close ends the watching of VMs. The VMs themselves go on.
func (m *Manager) Close() error {
	m.closed(ErrEnding)
	m.spares.close()
	err := m.exits.close()
	m.tasks.Wait()
	// Longer than a busy VMM takes, and less than systemd gives bangerd.
	if due := m.calls.Close(30 * time.Second); due > 0 {
		m.Log.Warn("VMMs owe an answer, and may end when they give it", "calls", due)
	}
	return err
}

// Create makes the record of a VM and returns it. Nothing else is made until
// it is started.
func (m *Manager) Create(ctx context.Context, spec api.VMSpec) (*store.VM, error) {
	v := m.wanted(spec)
	if err := m.resolve(ctx, v, spec); err != nil {
		return nil, err
	}
	for range 20 { // a generated name may be taken
		v.ID, v.Name = newID(), or(spec.Name, petname.Generate(2, "-"))
		err := m.Store.InsertVM(ctx, v)
		if spec.Name == "" && errors.Is(err, store.ErrExists) {
			continue
		}
		if err == nil {
			m.events.tell(api.EventState, v)
		}
		return v, refusedInsert(v, err)
	}
	return nil, api.Internal("cannot create VM: no free name was found").WithHint("give one with --name")
}

// refusedInsert puts the store's refusal in a person's words.
func refusedInsert(v *store.VM, err error) error {
	switch {
	case errors.Is(err, store.ErrExists):
		return api.Conflict("cannot create VM: the name %q is taken", v.Name).
			WithHint("choose another with --name, or delete it with `banger vm delete %s`", v.Name)
	case errors.Is(err, store.ErrInUse):
		return api.Conflict("cannot create VM: image %q or kernel %q has just been deleted", v.ImageName, v.KernelName)
	}
	return err
}

// Get finds a VM by name, id or prefix of the id.
func (m *Manager) Get(ctx context.Context, ref string) (*store.VM, error) {
	v, err := m.Store.VM(ctx, ref)
	if errors.Is(err, store.ErrNotFound) {
		return nil, api.NotFound("there is no VM %q", ref).WithHint("see `banger vm list`")
	}
	return v, err
}

// List returns all VMs, oldest first.
func (m *Manager) List(ctx context.Context) ([]*store.VM, error) { return m.Store.VMs(ctx) }

// connectTime bounds a connection to a guest, which may be frozen or hostile.
const connectTime = 10 * time.Second

// Dial connects to a vsock port of a running VM. The VM is in use until over is
// called, which has to be when the stream has ended.
func (m *Manager) Dial(ctx context.Context, ref string, port uint32) (u *net.UnixConn, over func(), err error) {
	v, err := m.Get(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	unused := m.activity.use(v.ID)
	defer func() {
		if err != nil {
			unused()
		}
	}()
	if err := reachable("cannot reach VM %q", v); err != nil {
		return nil, nil, err
	}
	if u := m.spares.take(v, port); u != nil {
		return u, unused, nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	u, err = jailOf(v.ID, v.UID).dialGuest(ctx, port)
	if errors.Is(err, guest.ErrRefused) {
		return nil, nil, api.Problemf(http.StatusBadGateway, "refused", "cannot reach VM %q: nothing in the guest listens on vsock port %d", v.Name, port)
	} else if err != nil {
		return nil, nil, fmt.Errorf("cannot reach VM %q: %w", v.Name, err)
	}
	return u, unused, nil
}

// Prepare makes a connection ready for the next Dial to the same port, when a
// session with the VM has ended. Without it that takes longer, so that a failure
// is nobody's loss.
func (m *Manager) Prepare(ctx context.Context, ref string, port uint32) {
	v, err := m.Get(ctx, ref)
	if err != nil || v.State != api.StateRunning || !m.spares.wanted(v, port) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	if u, err := jailOf(v.ID, v.UID).dialGuest(ctx, port); err == nil {
		m.spares.put(v, u)
	}
}

// locked runs f on the newest record of the VM with that id while nothing else
// works on it.
func (m *Manager) locked(ctx context.Context, id string, f func(*store.VM) error) error {
	unlock, err := m.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	v, err := m.Store.VMByID(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return api.NotFound("there is no VM %s any more", id)
	} else if err != nil {
		return err
	}
	return f(v)
}

func (m *Manager) setState(ctx context.Context, v *store.VM, s api.State, reason string) error {
	v.State, v.Reason = s, reason
	m.Log.InfoContext(ctx, "state", "vm", v.ID, "name", v.Name, "state", string(s), "reason", reason)
	if err := m.Store.UpdateVM(ctx, v); err != nil {
		return err
	}
	m.events.tell(api.EventState, v)
	return nil
}

// dir is the VM's own directory.
func (m *Manager) dir(v *store.VM) string { return filepath.Join(m.StateDir, "vms", v.ID) }

// UnitOf names the systemd unit of a VM.
func UnitOf(id string) string { return "banger-vm-" + id + ".service" }

func newID() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
