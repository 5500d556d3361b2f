package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"banger/api"
)

// phase is where a unit stands.
type phase int

// A unit that has ended may still be loaded for a moment; only when it is gone
// can another of its name be started.
const (
	unitGone phase = iota
	unitEnded
	unitStarting
	unitRunning
	unitEnding // its processes are dead or dying, "banger-helper cleanup" may be at work
)

func (p phase) over() bool  { return p == unitGone || p == unitEnded }
func (p phase) dead() bool  { return p.over() || p == unitEnding }
func (p phase) alive() bool { return p == unitStarting || p == unitRunning }

// vmUnit is what is special about one VM's unit. The rest, the sandbox of all
// of them, is the static drop-in.
type vmUnit struct {
	id     string
	uid    int
	exec   []string
	netns  string // path
	disks  []device
	root   string   // of the jail
	binds  []string // directories of the host to be seen in it, read only
	memory uint64   // bytes
	tasks  uint64
	// Shares of the host.
	cpuWeight, ioWeight uint64
	cpuMicros           uint64 // of CPU time a second; 0 = no ceiling
	ioBytes             uint64 // a second, of each disk and direction; 0 = no ceiling
}

// units is what the verbs want of systemd.
type units interface {
	phase(ctx context.Context, id string) (phase, error)
	// start queues the start and returns; watch from before.
	start(ctx context.Context, id string, settings []property) error
	stop(ctx context.Context, id string) error
	// kill is the quickest way to the end of a unit that runs.
	kill(ctx context.Context, id string) error
	watch(ctx context.Context, id string) (unitWatch, error)
}

// checkUnits is what vm.fsck wants of systemd beyond that.
type checkUnits interface {
	units
	// verdict is of a unit that has ended and is still loaded.
	verdict(ctx context.Context, id string) (verdict, error)
	// forget unloads a unit that failed.
	forget(ctx context.Context, id string) error
}

// unitWatch follows one unit from the moment it was made.
type unitWatch interface {
	// await returns when accept holds or wake is closed, with the phase seen last.
	await(ctx context.Context, accept func(phase) bool, wake <-chan struct{}) (phase, error)
	close()
}

const (
	busName      = "org.freedesktop.systemd1"
	managerIface = busName + ".Manager"
	serviceIface = busName + ".Service"
)

// systemd talks to pid 1 about the units of one kind, banger-KIND-ID.service.
type systemd struct {
	bus  *systemBus
	kind string
}

// Kinds of units.
const (
	vmKind    = "vm"
	checkKind = "fsck"
	trialKind = "kvm"
)

func (s *systemd) name(id string) string { return "banger-" + s.kind + "-" + id + ".service" }

// path is the unit's object path: letters and digits stay, all else becomes _xx.
func (s *systemd) path(id string) dbus.ObjectPath {
	return dbus.ObjectPath("/org/freedesktop/systemd1/unit/banger_2d" + s.kind + "_2d" + id + "_2eservice")
}

// dropIn is how the path of the file ends that holds the sandbox.
func (s *systemd) dropIn() string { return "/banger-" + s.kind + "-.service.d/10-banger.conf" }

// systemBus connects when first needed and again after the bus went away.
type systemBus struct {
	mu   sync.Mutex
	conn *dbus.Conn
}

func (s *systemBus) get(ctx context.Context) (*dbus.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && s.conn.Connected() {
		return s.conn, nil
	}
	conn, err := dbus.ConnectSystemBus(dbus.WithAuth(dbus.AuthExternal(strconv.Itoa(os.Geteuid()))))
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the system bus: %w", err)
	}
	if err := manager(conn).CallWithContext(ctx, managerIface+".Subscribe", 0).Err; err != nil {
		return nil, errors.Join(fmt.Errorf("cannot subscribe to systemd: %w", err), conn.Close())
	}
	s.conn = conn
	return conn, nil
}

func manager(conn *dbus.Conn) dbus.BusObject {
	return conn.Object(busName, "/org/freedesktop/systemd1")
}

// listedUnit is a row of ListUnitsByPatterns.
type listedUnit struct {
	Name, Description, Load, Active, Sub, Following string
	Path                                            dbus.ObjectPath
	JobID                                           uint32
	JobType                                         string
	JobPath                                         dbus.ObjectPath
}

// phase lists the unit instead of asking for its properties: a question about
// a unit that is not loaded would load an empty one, whose properties are lies.
func (s *systemd) phase(ctx context.Context, id string) (phase, error) {
	conn, err := s.bus.get(ctx)
	if err != nil {
		return unitGone, err
	}
	var rows []listedUnit
	err = manager(conn).CallWithContext(ctx, managerIface+".ListUnitsByPatterns", 0, []string{}, []string{s.name(id)}).Store(&rows)
	if err != nil {
		return unitGone, fmt.Errorf("cannot ask systemd for %s: %w", s.name(id), err)
	}
	return phaseOf(rows, s.name(id))
}

func phaseOf(rows []listedUnit, name string) (phase, error) {
	for _, u := range rows {
		if u.Name != name || u.Load == "not-found" {
			continue
		}
		switch u.Active {
		case "active", "reloading", "refreshing":
			return unitRunning, nil
		case "activating":
			return unitStarting, nil
		case "deactivating":
			return unitEnding, nil
		case "inactive", "failed":
			if u.JobID != 0 { // its start is queued
				return unitStarting, nil
			}
			return unitEnded, nil
		}
		// Unknown: better to do nothing than to take a running VM for ended.
		return unitRunning, fmt.Errorf("systemd says that %s is %q", name, u.Active)
	}
	return unitGone, nil
}

// property is how systemd takes settings.
type property struct {
	Name  string
	Value dbus.Variant
}

type execCommand struct {
	Path          string
	Args          []string
	IgnoreFailure bool
}

type deviceRule struct{ Path, Rights string }

func set(name string, value any) property { return property{name, dbus.MakeVariant(value)} }

// allow lets a unit use these disks, never all of device-mapper.
func allow(disks ...device) property {
	var rules []deviceRule
	for _, d := range disks {
		rules = append(rules, deviceRule{"/dev/block/" + d.number(), "rw"})
	}
	return set("DeviceAllow", rules)
}

func (u vmUnit) properties() []property {
	all := []property{
		set("Description", "banger VM "+u.id),
		set("Type", "forking"), // the jailer forks Firecracker into its pid namespace and exits
		set("ExecStart", []execCommand{{u.exec[0], u.exec, false}}),
		set("NetworkNamespacePath", u.netns),
		allow(u.disks...),
		set("MemoryMax", u.memory),
		set("MemorySwapMax", u.memory), // else it could fill the host's swap
		set("TasksMax", u.tasks),
		set("CPUWeight", u.cpuWeight),
		set("IOWeight", u.ioWeight),
	}
	if u.cpuMicros > 0 {
		all = append(all, set("CPUQuotaPerSecUSec", u.cpuMicros))
	}
	if u.ioBytes > 0 {
		all = append(all, set("IOReadBandwidthMax", bandwidths(u.disks, u.ioBytes)),
			set("IOWriteBandwidthMax", bandwidths(u.disks, u.ioBytes)))
	}
	if len(u.binds) > 0 {
		all = append(all, set("BindReadOnlyPaths", bindsBelow(u.root, u.binds)))
	}
	return all
}

type bandwidth struct {
	Path  string
	Bytes uint64
}

// bandwidths are of the VM's own disks. systemd follows a disk that is made of
// one other to that one, which is the VM's own too.
func bandwidths(disks []device, bytes uint64) (out []bandwidth) {
	for _, d := range disks {
		out = append(out, bandwidth{"/dev/block/" + d.number(), bytes})
	}
	return out
}

type bindMount struct {
	Source, Destination string
	IgnoreMissing       bool
	Flags               uint64
}

func bindsBelow(root string, dirs []string) (out []bindMount) {
	for _, d := range dirs {
		out = append(out, bindMount{d, root + d, true, unix.MS_REC})
	}
	return out
}

func (s *systemd) start(ctx context.Context, id string, settings []property) error {
	conn, err := s.bus.get(ctx)
	if err != nil {
		return err
	}
	type aux struct {
		Name       string
		Properties []property
	}
	// "replace": with "fail" the start would be refused while the journal's sockets, which
	// it needs, are being stopped behind the last unit that had them.
	err = manager(conn).CallWithContext(ctx, managerIface+".StartTransientUnit", 0, s.name(id), "replace", settings, []aux{}).Err
	if err != nil {
		return fmt.Errorf("cannot start %s: %w", s.name(id), err)
	}
	return s.checkSandbox(ctx, conn, id)
}

// checkSandbox fails if the unit was started without the static drop-in, as
// after an installation that systemd has not been told of: nothing runs with
// less than the whole sandbox for longer than it takes to look.
func (s *systemd) checkSandbox(ctx context.Context, conn *dbus.Conn, id string) error {
	var list []string
	if err := s.ask(ctx, conn, id, busName+".Unit", "DropInPaths", &list); err != nil {
		return err
	}
	for _, path := range list {
		if strings.HasSuffix(path, s.dropIn()) {
			return nil
		}
	}
	return api.Problemf(412, api.CodePrerequisite, "systemd does not know %s, which holds the sandbox", s.dropIn()[1:]).
		WithHint("run `banger system install` again")
}

// ask reads a property of a unit that is loaded.
func (s *systemd) ask(ctx context.Context, conn *dbus.Conn, id, iface, name string, value any) error {
	var v dbus.Variant
	err := conn.Object(busName, s.path(id)).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, iface, name).Store(&v)
	if err == nil {
		err = v.Store(value)
	}
	if err != nil {
		return fmt.Errorf("cannot ask systemd for %s of %s: %w", name, s.name(id), err)
	}
	return nil
}

// verdict is how the main process of a unit ended.
type verdict struct {
	Result string // success, exit-code, signal, oom-kill, timeout, …
	Code   int32  // a CLD_ constant of waitid(2)
	Status int32
}

func (s *systemd) verdict(ctx context.Context, id string) (v verdict, err error) {
	conn, err := s.bus.get(ctx)
	if err != nil {
		return v, err
	}
	err = errors.Join(s.ask(ctx, conn, id, serviceIface, "Result", &v.Result),
		s.ask(ctx, conn, id, serviceIface, "ExecMainCode", &v.Code),
		s.ask(ctx, conn, id, serviceIface, "ExecMainStatus", &v.Status))
	return v, err
}

// stop queues the unit's stop, which is SIGKILL by the drop-in.
func (s *systemd) stop(ctx context.Context, id string) error {
	return s.tell(ctx, id, "StopUnit", "replace")
}

// kill sends SIGKILL to the main process, without a job. Only to that one: a
// clean-up that is at work in the unit has to go on. A unit without a main process,
// as in its first moments, is stopped.
func (s *systemd) kill(ctx context.Context, id string) error {
	if s.tell(ctx, id, "KillUnit", "main", int32(unix.SIGKILL)) == nil {
		return nil
	}
	return s.stop(ctx, id)
}

func (s *systemd) forget(ctx context.Context, id string) error {
	return s.tell(ctx, id, "ResetFailedUnit")
}

// tell calls a method of the manager on the unit; it is fine if there is none.
func (s *systemd) tell(ctx context.Context, id, method string, more ...any) error {
	conn, err := s.bus.get(ctx)
	if err != nil {
		return err
	}
	err = manager(conn).CallWithContext(ctx, managerIface+"."+method, 0, append([]any{s.name(id)}, more...)...).Err
	if e, ok := errors.AsType[dbus.Error](err); ok && e.Name == busName+".NoSuchUnit" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot call %s of %s: %w", method, s.name(id), err)
	}
	return nil
}

type systemdWatch struct {
	s       *systemd
	conn    *dbus.Conn
	id      string
	signals chan *dbus.Signal
	rules   []string
	asked   chan *dbus.Call // the bus' answers to the rules, nil once they were read
}

func (s *systemd) watch(ctx context.Context, id string) (unitWatch, error) {
	conn, err := s.bus.get(ctx)
	if err != nil {
		return nil, err
	}
	w := &systemdWatch{s: s, conn: conn, id: id, signals: make(chan *dbus.Signal, 16), rules: []string{
		fmt.Sprintf("type='signal',sender='%s',interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',path='%s'", busName, s.path(id)),
		fmt.Sprintf("type='signal',sender='%s',interface='%s',member='UnitRemoved',arg0='%s'", busName, managerIface, s.name(id)),
	}}
	conn.Signal(w.signals)
	// The bus takes messages in their order, so whatever is asked of systemd next
	// comes after the rules, and nobody has to wait for their answers before.
	w.asked = make(chan *dbus.Call, len(w.rules))
	for _, rule := range w.rules {
		conn.BusObject().GoWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, w.asked, rule)
	}
	return w, nil
}

// watching returns when the bus has taken the rules.
func (w *systemdWatch) watching(ctx context.Context) error {
	if w.asked == nil {
		return nil
	}
	for range w.rules {
		select {
		case c := <-w.asked:
			if c.Err != nil {
				return fmt.Errorf("cannot watch %s: %w", w.s.name(w.id), c.Err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	w.asked = nil
	return nil
}

func (w *systemdWatch) close() {
	w.conn.RemoveSignal(w.signals)
	for _, rule := range w.rules {
		// Fails only if the bus is gone, and the rules with it.
		w.conn.BusObject().Go("org.freedesktop.DBus.RemoveMatch", dbus.FlagNoReplyExpected, nil, rule)
	}
}

func (w *systemdWatch) await(ctx context.Context, accept func(phase) bool, wake <-chan struct{}) (phase, error) {
	if err := w.watching(ctx); err != nil {
		return unitGone, err
	}
	for {
		p, err := w.s.phase(ctx, w.id)
		if err != nil || accept(p) {
			return p, err
		}
		if err := w.change(ctx, wake); err != nil {
			return p, err
		}
		select {
		case <-wake:
			return p, nil
		default:
		}
	}
}

// lookAgain is how long a change may go unnoticed: systemd leaves the bus when it
// executes itself anew, and signals of that moment are lost.
const lookAgain = 2 * time.Second

// change returns when a signal is about this unit, and now and then without one:
// one connection carries those of all watches.
func (w *systemdWatch) change(ctx context.Context, wake <-chan struct{}) error {
	again := time.NewTimer(lookAgain)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			return nil
		case sig, ok := <-w.signals:
			if !ok {
				return errors.New("connection to the system bus was lost")
			}
			if sig.Path == w.s.path(w.id) || len(sig.Body) > 0 && sig.Body[0] == w.s.name(w.id) {
				return nil
			}
		case <-wake:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
