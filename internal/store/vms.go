package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"banger/api"
)

// VM is the record of a VM.
type VM struct {
	ID, Name          string
	State             api.State
	Reason            string
	ImageID, KernelID string
	ImageName         string // joined, not written
	KernelName        string // joined, not written
	VCPU, MemoryMiB   int
	DiskBytes         int64 // of the work disk; 0 = none
	NAT               bool
	Network           string
	Autostart         bool
	Restart           api.Restart
	IdleStop          int      // seconds; 0 = never
	Stale             []string // what was changed and holds only after a restart
	Ephemeral         bool     // goes with its lease
	CPUWeight         int      // 0 = systemd's default, as IOWeight
	IOWeight          int
	CPULimit          int   // thousandths of a CPU; 0 = none
	IOLimit           int64 // bytes a second; 0 = none
	Slot, UID         int
	CreatedAt         time.Time
	StartedAt         time.Time
	HostBoot          string
	Timing            json.RawMessage // []api.PhaseTime: only who shows one VM reads it
	Guest             *api.Guest
}

// Phases reads Timing.
func (v *VM) Phases() (out []api.PhaseTime, err error) {
	if len(v.Timing) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(v.Timing, &out); err != nil {
		return nil, fmt.Errorf("cannot read timing of VM %q: %w", v.Name, err)
	}
	return out, nil
}

// vmColumns are those that change; vmValues has their values in this order.
var vmColumns = []string{"name", "state", "reason", "image_id", "kernel_id", "vcpu", "memory_mib",
	"disk_bytes", "nat", "network", "autostart", "restart", "idle_stop", "stale", "ephemeral",
	"cpu_weight", "io_weight", "cpu_limit", "io_limit",
	"slot", "uid", "started_at", "host_boot", "timing", "guest"}

func vmValues(v *VM) ([]any, error) {
	stale, staleErr := json.Marshal(v.Stale)
	guest, guestErr := []byte(nil), error(nil)
	if v.Guest != nil {
		guest, guestErr = json.Marshal(v.Guest)
	}
	timing := string(v.Timing)
	if timing == "" {
		timing = "null"
	}
	restart := v.Restart
	if restart == "" {
		restart = api.RestartNo
	}
	return []any{v.Name, v.State, v.Reason, v.ImageID, v.KernelID, v.VCPU, v.MemoryMiB,
		v.DiskBytes, v.NAT, v.Network, v.Autostart, restart, v.IdleStop, string(stale), v.Ephemeral,
		v.CPUWeight, v.IOWeight, v.CPULimit, v.IOLimit,
		v.Slot, v.UID, nanos(v.StartedAt), v.HostBoot, timing, string(guest)}, errors.Join(staleErr, guestErr)
}

var (
	vmInsert = `INSERT INTO vms (id, created_at, ` + strings.Join(vmColumns, ", ") + `) VALUES ` + placeholders(2+len(vmColumns))
	vmUpdate = `UPDATE vms SET ` + strings.Join(vmColumns, "=?, ") + `=? WHERE id=?`
	vmSelect = `SELECT v.id, v.created_at, v.` + strings.Join(vmColumns, ", v.") + `, i.name, k.name
	FROM vms v JOIN images i ON i.id = v.image_id JOIN kernels k ON k.id = v.kernel_id `
)

// InsertVM adds a record; ErrExists when the name is taken.
func (s *Store) InsertVM(ctx context.Context, v *VM) error {
	values, err := vmValues(v)
	if err != nil {
		return err
	}
	_, err = s.db.ExecContext(ctx, vmInsert, append([]any{v.ID, nanos(v.CreatedAt)}, values...)...)
	return wrap(fmt.Sprintf("VM %q", v.Name), err)
}

// UpdateVM writes every changeable column; ErrExists when a new name is taken.
func (s *Store) UpdateVM(ctx context.Context, v *VM) error {
	values, err := vmValues(v)
	if err != nil {
		return err
	}
	r, err := s.db.ExecContext(ctx, vmUpdate, append(values, v.ID)...)
	return changed(fmt.Sprintf("VM %q", v.Name), r, err)
}

// DeleteVM removes a record.
func (s *Store) DeleteVM(ctx context.Context, id string) error {
	r, err := s.db.ExecContext(ctx, `DELETE FROM vms WHERE id=?`, id)
	return changed("VM "+id, r, err)
}

// VM finds a record by name, id, or a prefix of at least four digits that only
// one id has. A name wins over an id.
func (s *Store) VM(ctx context.Context, ref string) (*VM, error) {
	vs, err := s.queryVMs(ctx, `WHERE v.name=? OR v.id=?`, ref, ref)
	if err == nil && len(vs) == 0 && len(ref) >= 4 && isHex(ref) {
		vs, err = s.queryVMs(ctx, `WHERE v.id >= ? AND v.id < ? LIMIT 3`, ref, ref+"g")
	}
	if err != nil {
		return nil, err
	}
	switch len(vs) {
	case 0:
		return nil, fmt.Errorf("VM %q: %w", ref, ErrNotFound)
	case 1:
		return vs[0], nil
	}
	for _, v := range vs {
		if v.Name == ref {
			return v, nil
		}
	}
	return nil, api.Problemf(409, "ambiguous", "%q matches more than one VM: %s and %s", ref, vs[0].Name, vs[1].Name).
		WithHint("use the name or more digits of the id")
}

// VMByID finds a record by its whole id, and by nothing else.
func (s *Store) VMByID(ctx context.Context, id string) (*VM, error) {
	vs, err := s.queryVMs(ctx, `WHERE v.id=?`, id)
	if err == nil && len(vs) == 0 {
		err = fmt.Errorf("VM %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return vs[0], nil
}

// VMs lists all records, oldest first.
func (s *Store) VMs(ctx context.Context) ([]*VM, error) {
	return s.queryVMs(ctx, `ORDER BY v.created_at, v.id`)
}

// ActiveVMs lists those whose state says that they may hold kernel objects.
func (s *Store) ActiveVMs(ctx context.Context) ([]*VM, error) {
	return s.queryVMs(ctx, `WHERE v.state IN (?,?,?,?)`, api.StateStarting, api.StateRunning, api.StatePaused, api.StateStopping)
}

// IdleStopVMs lists the running VMs that are to be stopped when nobody uses
// them.
func (s *Store) IdleStopVMs(ctx context.Context) ([]*VM, error) {
	return s.queryVMs(ctx, `WHERE v.state = ? AND v.idle_stop > 0`, api.StateRunning)
}

// AutostartVMs lists the VMs that are to be started with the host.
func (s *Store) AutostartVMs(ctx context.Context) ([]*VM, error) {
	return s.queryVMs(ctx, `WHERE v.autostart = 1 ORDER BY v.created_at, v.id`)
}

func (s *Store) queryVMs(ctx context.Context, where string, args ...any) ([]*VM, error) {
	rows, err := s.db.QueryContext(ctx, vmSelect+where, args...)
	if err != nil {
		return nil, fmt.Errorf("cannot read VMs: %w", err)
	}
	defer rows.Close()
	var vs []*VM
	for rows.Next() {
		var v VM
		var created, started int64
		var timing, stale, guest string
		if err := rows.Scan(&v.ID, &created, &v.Name, &v.State, &v.Reason, &v.ImageID, &v.KernelID, &v.VCPU, &v.MemoryMiB,
			&v.DiskBytes, &v.NAT, &v.Network, &v.Autostart, &v.Restart, &v.IdleStop, &stale, &v.Ephemeral,
			&v.CPUWeight, &v.IOWeight, &v.CPULimit, &v.IOLimit,
			&v.Slot, &v.UID, &started, &v.HostBoot, &timing, &guest, &v.ImageName, &v.KernelName); err != nil {
			return nil, fmt.Errorf("cannot read VM: %w", err)
		}
		v.CreatedAt, v.StartedAt = fromNanos(created), fromNanos(started)
		v.Timing = json.RawMessage(timing)
		if err := json.Unmarshal([]byte(stale), &v.Stale); err != nil {
			return nil, fmt.Errorf("cannot read VM %q: %w", v.Name, err)
		}
		if guest != "" {
			if err := json.Unmarshal([]byte(guest), &v.Guest); err != nil {
				return nil, fmt.Errorf("cannot read VM %q: guest: %w", v.Name, err)
			}
		}
		vs = append(vs, &v)
	}
	return vs, rows.Err()
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

func isHex(s string) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
