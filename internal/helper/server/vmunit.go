package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"

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
	disk   string // "major:minor"
	memory uint64 // bytes
	tasks  uint64
}

// units is what the verbs want of systemd.
type units interface {
	phase(ctx context.Context, id string) (phase, error)
	// start queues the start and returns; watch from before.
	start(ctx context.Context, u vmUnit) error
	stop(ctx context.Context, id string) error
	watch(ctx context.Context, id string) (unitWatch, error)
}

// unitWatch follows one unit from the moment it was made.
type unitWatch interface {
	// await returns when accept holds or wake is closed, with the phase seen last.
	await(ctx context.Context, accept func(phase) bool, wake <-chan struct{}) (phase, error)
	close()
}

const (
	managerIface = "org.freedesktop.systemd1.Manager"
	dropIn       = "/banger-vm-.service.d/10-banger.conf"
)

// systemd talks to pid 1 over the system bus. It connects when first needed and
// again after the bus went away.
type systemd struct {
	mu   sync.Mutex
	conn *dbus.Conn
}

func (s *systemd) bus(ctx context.Context) (*dbus.Conn, error) {
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
	return conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
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
	conn, err := s.bus(ctx)
	if err != nil {
		return unitGone, err
	}
	var rows []listedUnit
	err = manager(conn).CallWithContext(ctx, managerIface+".ListUnitsByPatterns", 0, []string{}, []string{unitName(id)}).Store(&rows)
	if err != nil {
		return unitGone, fmt.Errorf("cannot ask systemd for %s: %w", unitName(id), err)
	}
	return phaseOf(rows, unitName(id))
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

func (u vmUnit) properties() []property {
	p := func(name string, value any) property { return property{name, dbus.MakeVariant(value)} }
	return []property{
		p("Description", "banger VM "+u.id),
		p("Type", "forking"), // the jailer forks Firecracker into its pid namespace and exits
		p("ExecStart", []execCommand{{u.exec[0], u.exec, false}}),
		p("NetworkNamespacePath", u.netns),
		p("DeviceAllow", []deviceRule{{"/dev/block/" + u.disk, "rw"}}),
		p("MemoryMax", u.memory),
		p("TasksMax", u.tasks),
	}
}

func (s *systemd) start(ctx context.Context, u vmUnit) error {
	conn, err := s.bus(ctx)
	if err != nil {
		return err
	}
	type aux struct {
		Name       string
		Properties []property
	}
	err = manager(conn).CallWithContext(ctx, managerIface+".StartTransientUnit", 0,
		unitName(u.id), "fail", u.properties(), []aux{}).Err
	if err != nil {
		return fmt.Errorf("cannot start %s: %w", unitName(u.id), err)
	}
	return s.checkSandbox(ctx, conn, u.id)
}

// checkSandbox fails if the unit was started without the static drop-in, as
// after an installation that systemd has not been told of: no VM runs with
// less than the whole sandbox.
func (s *systemd) checkSandbox(ctx context.Context, conn *dbus.Conn, id string) error {
	var v dbus.Variant
	err := conn.Object("org.freedesktop.systemd1", unitPath(id)).
		CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, "org.freedesktop.systemd1.Unit", "DropInPaths").Store(&v)
	if err != nil {
		return fmt.Errorf("cannot check the sandbox of %s: %w", unitName(id), err)
	}
	list, _ := v.Value().([]string)
	for _, path := range list {
		if strings.HasSuffix(path, dropIn) {
			return nil
		}
	}
	return api.Problemf(412, api.CodePrerequisite, "systemd does not know %s, which holds the sandbox of all VMs", filepath.Base(dropIn)).
		WithHint("run `banger system install` again")
}

// stop queues the unit's stop, which is SIGKILL by the drop-in.
func (s *systemd) stop(ctx context.Context, id string) error {
	conn, err := s.bus(ctx)
	if err != nil {
		return err
	}
	err = manager(conn).CallWithContext(ctx, managerIface+".StopUnit", 0, unitName(id), "replace").Err
	if e, ok := errors.AsType[dbus.Error](err); ok && e.Name == "org.freedesktop.systemd1.NoSuchUnit" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot stop %s: %w", unitName(id), err)
	}
	return nil
}

// unitPath is the unit's object path: letters and digits stay, all else
// becomes _xx.
func unitPath(id string) dbus.ObjectPath {
	return dbus.ObjectPath("/org/freedesktop/systemd1/unit/banger_2dvm_2d" + id + "_2eservice")
}

type systemdWatch struct {
	s       *systemd
	conn    *dbus.Conn
	id      string
	signals chan *dbus.Signal
	rules   [][]dbus.MatchOption
}

func (s *systemd) watch(ctx context.Context, id string) (unitWatch, error) {
	conn, err := s.bus(ctx)
	if err != nil {
		return nil, err
	}
	w := &systemdWatch{s: s, conn: conn, id: id, signals: make(chan *dbus.Signal, 16), rules: [][]dbus.MatchOption{
		{dbus.WithMatchInterface("org.freedesktop.DBus.Properties"), dbus.WithMatchMember("PropertiesChanged"), dbus.WithMatchObjectPath(unitPath(id))},
		{dbus.WithMatchInterface(managerIface), dbus.WithMatchMember("UnitRemoved"), dbus.WithMatchArg(0, unitName(id))},
	}}
	conn.Signal(w.signals)
	for i, rule := range w.rules {
		if err := conn.AddMatchSignalContext(ctx, rule...); err != nil {
			w.rules = w.rules[:i]
			w.close()
			return nil, fmt.Errorf("cannot watch %s: %w", unitName(id), err)
		}
	}
	return w, nil
}

func (w *systemdWatch) close() {
	w.conn.RemoveSignal(w.signals)
	for _, rule := range w.rules {
		// Fails only if the bus is gone, and the rules with it.
		_ = w.conn.RemoveMatchSignal(rule...)
	}
}

func (w *systemdWatch) await(ctx context.Context, accept func(phase) bool, wake <-chan struct{}) (phase, error) {
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

// change returns when a signal is about this unit: one connection carries
// those of all watches.
func (w *systemdWatch) change(ctx context.Context, wake <-chan struct{}) error {
	for {
		select {
		case sig, ok := <-w.signals:
			if !ok {
				return errors.New("connection to the system bus was lost")
			}
			if sig.Path == unitPath(w.id) || len(sig.Body) > 0 && sig.Body[0] == unitName(w.id) {
				return nil
			}
		case <-wake:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
