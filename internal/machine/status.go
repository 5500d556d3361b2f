package machine

import (
	"time"
)

// State of a machine.
type State string

// The states a machine can be in.
const (
	Absent  State = "absent"
	Stopped State = "stopped"
	Running State = "running"
)

// Status describes a machine; its JSON form is what `machine status --json` prints.
type Status struct {
	Name      string    `json:"name"`
	State     State     `json:"state"`
	Dir       string    `json:"dir"`
	CPUs      int       `json:"cpus,omitempty"`
	MemoryMiB int       `json:"memory_mib,omitempty"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	Version   string    `json:"version,omitempty"` // of the banger installed in it

	// Of a running machine only.
	Accel     string    `json:"accel,omitempty"` // "kvm" or "tcg"
	PID       int       `json:"pid,omitempty"`
	Port      int       `json:"port,omitempty"` // its SSH port on 127.0.0.1
	StartedAt time.Time `json:"started_at,omitzero"`
}

// Status describes the machine as it is now.
func (m *Machine) Status() (Status, error) {
	s := Status{Name: m.Name, State: Absent, Dir: m.Dir}
	exists, err := m.Exists()
	if err != nil || !exists {
		return s, err
	}
	rec, err := m.readRecord()
	if err != nil {
		return s, err
	}
	s.State, s.CPUs, s.MemoryMiB, s.CreatedAt, s.Version = Stopped, rec.cpus(accelKVM), rec.MemoryMiB, rec.CreatedAt, rec.Version
	r, running, err := m.running()
	if err != nil || !running {
		return s, err
	}
	s.State, s.Accel, s.PID, s.Port, s.StartedAt = Running, r.Accel, r.PID, r.Port, r.StartedAt
	s.CPUs = rec.cpus(r.Accel)
	return s, nil
}
