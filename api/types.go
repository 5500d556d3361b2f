// Package api holds the types on bangerd's wire (HTTP, /v1/…) and nothing
// else. Fields are only ever added.
package api

import "time"

// State of a VM.
type State string

// The states of a VM. StateFailed always comes with VM.Reason.
const (
	StateCreated  State = "created"
	StateStarting State = "starting"
	StateRunning  State = "running"
	StatePaused   State = "paused"
	StateStopping State = "stopping"
	StateStopped  State = "stopped"
	StateFailed   State = "failed"
	// StateDeleted is told by an Event; no VM has it.
	StateDeleted State = "deleted"
)

// VM is one virtual machine.
type VM struct {
	ID        string  `json:"id"`
	Name      string  `json:"name"`
	State     State   `json:"state"`
	Reason    string  `json:"reason,omitempty" doc:"why the state is failed, for a person"`
	Image     string  `json:"image"`
	Kernel    string  `json:"kernel"`
	VCPU      int     `json:"vcpu"`
	MemoryMiB int     `json:"memory_mib"`
	DiskBytes int64   `json:"disk_bytes,omitempty" doc:"size of the work disk, which is mounted at /root; 0 = none"`
	Slot      int     `json:"slot"`
	Unit      string  `json:"unit"`
	Address   string  `json:"address,omitempty" doc:"of the guest"`
	NAT       bool    `json:"nat" doc:"the guest may reach what the host can"`
	Network   string  `json:"network,omitempty" doc:"guests that name the same may talk to each other"`
	Autostart bool    `json:"autostart,omitempty" doc:"start it when the host has booted"`
	Restart   Restart `json:"restart,omitempty"`
	// IdleStopSeconds stops the VM when nobody used it for so long; 0 = never.
	IdleStopSeconds int `json:"idle_stop_seconds,omitempty"`
	// Weights are the VM's share of what the host has too little of, 1 to 10000;
	// 0 = 100. Ceilings hold always; 0 = none.
	CPUWeight      int   `json:"cpu_weight,omitempty"`
	IOWeight       int   `json:"io_weight,omitempty"`
	CPULimitMillis int   `json:"cpu_limit_millis,omitempty" doc:"thousandths of a CPU"`
	IOLimitBytes   int64 `json:"io_limit_bytes,omitempty" doc:"a second, of each disk, for reading and for writing"`
	// Ephemeral: it is deleted when nobody holds its lease any more.
	Ephemeral bool `json:"ephemeral,omitempty"`
	// Stale names what was changed and holds only after a restart.
	Stale     []string  `json:"stale,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	// StartedAt is the begin of the last start; zero if there was none.
	StartedAt time.Time `json:"started_at,omitzero"`
	// Timing of the last start, in the order of its phases; only of a VM that is
	// asked for by itself.
	Timing []PhaseTime `json:"timing,omitempty"`
	// Guest is what the agent said when it took its identity.
	Guest *Guest `json:"guest,omitempty"`
}

// Restart says what happens when a VM ends and nobody asked for it.
type Restart string

// Policies. A guest that reboots is started again in any case but RestartNever.
const (
	RestartNo        Restart = "no"         // the default
	RestartOnFailure Restart = "on-failure" // after StateFailed
	RestartAlways    Restart = "always"     // also after poweroff in the guest
	RestartNever     Restart = "never"      // not even when the guest reboots
)

// PhaseTotal is the last entry of a VM's timing: the whole start.
const PhaseTotal = "total"

// PhaseTime is how long one phase of a start took.
type PhaseTime struct {
	Phase        string  `json:"phase"`
	Milliseconds float64 `json:"milliseconds"`
}

// Guest is what the agent reports of a running VM.
type Guest struct {
	Kernel string `json:"kernel"`
	BootID string `json:"boot_id"`
	Init   string `json:"init"`
	Agent  string `json:"agent" doc:"version of the agent"`
}

// VMSpec asks for a VM. Zero values mean the configured default.
type VMSpec struct {
	Name      string `json:"name,omitempty" doc:"generated when empty"`
	Image     string `json:"image,omitempty"`
	Kernel    string `json:"kernel,omitempty"`
	VCPU      *int   `json:"vcpu,omitempty"`
	MemoryMiB *int   `json:"memory_mib,omitempty"`
	// DiskBytes is the size of the work disk; 0 = none.
	DiskBytes       *int64  `json:"disk_bytes,omitempty"`
	NAT             *bool   `json:"nat,omitempty"`
	Network         string  `json:"network,omitempty"`
	Autostart       bool    `json:"autostart,omitempty"`
	Restart         Restart `json:"restart,omitempty" enum:"no,on-failure,always,never"`
	IdleStopSeconds *int    `json:"idle_stop_seconds,omitempty"`
	CPUWeight       *int    `json:"cpu_weight,omitempty"`
	IOWeight        *int    `json:"io_weight,omitempty"`
	CPULimitMillis  *int    `json:"cpu_limit_millis,omitempty"`
	IOLimitBytes    *int64  `json:"io_limit_bytes,omitempty"`
	// NoStart only creates the record.
	NoStart bool `json:"no_start,omitempty"`
	// Ephemeral has the VM deleted, running or not, once the connections that
	// hold its lease (POST /v1/vms/REF/lease) are gone.
	Ephemeral bool `json:"ephemeral,omitempty"`
}

// VMChange is PATCH /v1/vms/REF; what is absent stays. VM.Stale tells
// afterwards what holds only after a restart.
type VMChange struct {
	Name            *string  `json:"name,omitempty"`
	Image           *string  `json:"image,omitempty" doc:"a new root disk is made of it; the work disk stays"`
	Kernel          *string  `json:"kernel,omitempty"`
	VCPU            *int     `json:"vcpu,omitempty"`
	MemoryMiB       *int     `json:"memory_mib,omitempty"`
	DiskBytes       *int64   `json:"disk_bytes,omitempty" doc:"never less than before"`
	NAT             *bool    `json:"nat,omitempty"`
	Network         *string  `json:"network,omitempty"`
	Autostart       *bool    `json:"autostart,omitempty"`
	Restart         *Restart `json:"restart,omitempty" enum:"no,on-failure,always,never"`
	IdleStopSeconds *int     `json:"idle_stop_seconds,omitempty"`
	CPUWeight       *int     `json:"cpu_weight,omitempty"`
	IOWeight        *int     `json:"io_weight,omitempty"`
	CPULimitMillis  *int     `json:"cpu_limit_millis,omitempty"`
	IOLimitBytes    *int64   `json:"io_limit_bytes,omitempty"`
}

// Stats are the figures of a running VM: what its VMM has taken from the host
// since its start.
type Stats struct {
	Name        string    `json:"name"`
	ID          string    `json:"id"`
	At          time.Time `json:"at"`
	CPUMicros   int64     `json:"cpu_micros"`
	MemoryBytes int64     `json:"memory_bytes"`
	MemoryLimit int64     `json:"memory_limit"`
	ReadBytes   int64     `json:"read_bytes" doc:"from disks"`
	WriteBytes  int64     `json:"write_bytes"`
	RxBytes     int64     `json:"rx_bytes" doc:"received by the guest"`
	TxBytes     int64     `json:"tx_bytes"`
	Tasks       int       `json:"tasks"`
}

// Health is what a guest's agent answers, and how fast.
type Health struct {
	Name         string  `json:"name"`
	ID           string  `json:"id"`
	Phase        string  `json:"phase"`
	Milliseconds float64 `json:"milliseconds" doc:"from question to answer"`
	Guest        Guest   `json:"guest"`
}

// Port is a socket in a guest on which something listens.
type Port struct {
	Protocol string `json:"protocol" enum:"tcp,udp"`
	Address  string `json:"address"`
	Port     int    `json:"port"`
	Process  string `json:"process,omitempty"`
}

// Event tells of a VM. Seq grows by one from event to event, also across a
// restart of bangerd by a leap; those of a snapshot share the number from which
// to go on.
type Event struct {
	Seq    int64     `json:"seq"`
	Kind   EventKind `json:"kind" enum:"state,renamed,changed,snapshot,missed"`
	At     time.Time `json:"at"`
	ID     string    `json:"id,omitempty"`
	Name   string    `json:"name,omitempty"`
	State  State     `json:"state,omitempty" doc:"as it is now; deleted is told as such"`
	Reason string    `json:"reason,omitempty"`
}

// EventKind says what an Event tells.
type EventKind string

// Kinds of events.
const (
	EventState   EventKind = "state"   // the VM was made, deleted, or is in another state
	EventRenamed EventKind = "renamed" // Name is the new one
	EventChanged EventKind = "changed" // other settings
	// EventSnapshot tells how a VM is at this moment; nothing has happened.
	EventSnapshot EventKind = "snapshot"
	// EventMissed names no VM: events before this one are no longer known. A
	// snapshot of all VMs follows.
	EventMissed EventKind = "missed"
)

// PruneRequest asks for the removal of VMs that do not run: those that are
// stopped, failed or created.
type PruneRequest struct {
	// OlderThanSeconds spares VMs that were made or started since then.
	OlderThanSeconds int `json:"older_than_seconds,omitempty" minimum:"0" maximum:"3155760000"`
	// Only lists the ids that may be deleted; absent: all.
	Only []string `json:"only,omitempty"`
	// DryRun only tells which.
	DryRun bool `json:"dry_run,omitempty"`
}

// Pruned is the answer: which VMs, and for each the operation that deletes it
// unless it was a dry run.
type Pruned struct {
	VMs        []VM        `json:"vms"`
	Operations []Operation `json:"operations,omitempty"`
}

// Image is an imported root filesystem.
type Image struct {
	Name       string    `json:"name"`
	Size       int64     `json:"size" doc:"virtual size of the filesystem in bytes"`
	DiskBytes  int64     `json:"disk_bytes" doc:"what it takes on disk"`
	Files      int       `json:"files"`
	ImportedAt time.Time `json:"imported_at"`
	UsedBy     []string  `json:"used_by,omitempty" doc:"names of VMs made from it"`
}

// Kernel is an imported guest kernel.
type Kernel struct {
	Name       string    `json:"name"`
	Release    string    `json:"release" doc:"as uname -r says"`
	Size       int64     `json:"size"`
	Modules    []string  `json:"modules,omitempty" doc:"in load order"`
	SHA256     string    `json:"sha256" doc:"of the uncompressed ELF"`
	ImportedAt time.Time `json:"imported_at"`
	UsedBy     []string  `json:"used_by,omitempty"`
}

// ImportSpec begins an import. The data follows as the body of
// PUT /v1/operations/ID/input: for an image a tar of a root filesystem
// (plain, gzip, xz or zstd); for a kernel a tar with the member "kernel" and
// optionally the tree "modules/" (modules.dep, modules.builtin and the files).
type ImportSpec struct {
	Name string `json:"name"`
	// Bytes is the length of the input if known, for progress.
	Bytes int64 `json:"bytes,omitempty"`
}

// OperationStatus of an operation.
type OperationStatus string

// An operation ends in one of the last three and then never changes.
const (
	OperationRunning   OperationStatus = "running"
	OperationSucceeded OperationStatus = "succeeded"
	OperationFailed    OperationStatus = "failed"
	OperationCancelled OperationStatus = "cancelled"
)

// Operation is a change in progress or done. It is found in the logs of every
// program that took part under its id.
type Operation struct {
	ID     string          `json:"id"`
	Kind   string          `json:"kind" doc:"e.g. vm.create, image.import"`
	Target string          `json:"target" doc:"name of the VM, image or kernel"`
	Status OperationStatus `json:"status"`
	Stages []Stage         `json:"stages"`
	Error  *Problem        `json:"error,omitempty"`
	VM     *VM             `json:"vm,omitempty" doc:"the VM of a vm operation, as it was at its begin and then as it is at its end"`
	Begun  time.Time       `json:"begun"`
	Ended  time.Time       `json:"ended,omitzero"`
}

// Stage is one step that a person watching an operation sees.
type Stage struct {
	Name   string `json:"name" doc:"stable, e.g. boot_firecracker"`
	Detail string `json:"detail" doc:"for a person, e.g. starting firecracker"`
	// Done and Total count bytes where the stage moves bytes; Total 0 = unknown.
	Done         int64   `json:"done,omitempty"`
	Total        int64   `json:"total,omitempty"`
	Milliseconds float64 `json:"milliseconds,omitempty" doc:"set when the stage is over"`
}

// CertificateRequest asks for a user certificate that opens SSH sessions into
// the VMs of this installation for a few minutes.
type CertificateRequest struct {
	PublicKey string `json:"public_key" doc:"authorized_keys line"`
}

// Certificate is the answer.
type Certificate struct {
	Certificate string    `json:"certificate" doc:"authorized_keys line"`
	HostCA      string    `json:"host_ca" doc:"authorized_keys line of the authority that signs the VMs' host keys"`
	ValidBefore time.Time `json:"valid_before"`
}

// Version is GET /v1/version.
type Version struct {
	Version string `json:"version"`
	API     int    `json:"api" doc:"raised when a client must know"`
	Owner   string `json:"owner"`
}

// APIVersion is what this build speaks.
const APIVersion = 1

// VersionHeader carries the daemon's APIVersion on its every answer, so that a
// client notices at no cost that it talks to an older or newer one.
const VersionHeader = "Banger-Api"

// Check is one finding about a host, of doctor or before a start.
type Check struct {
	ID     string      `json:"id"`
	Status CheckStatus `json:"status" enum:"pass,warn,fail"`
	Found  string      `json:"found"`
	Why    string      `json:"why,omitempty" doc:"why it matters"`
	Fix    string      `json:"fix,omitempty" doc:"what a person can do"`
	Repair string      `json:"repair,omitempty" doc:"what POST /v1/doctor/repair would do; absent: nothing"`
}

// CheckStatus is how grave a Check is.
type CheckStatus string

// A warning is something to know or to mend soon; what failed keeps VMs from
// running, or from being isolated as promised.
const (
	CheckPass CheckStatus = "pass"
	CheckWarn CheckStatus = "warn"
	CheckFail CheckStatus = "fail"
)

// RepairRequest asks bangerd to do what the checks of these ids say under
// Repair. The answer is those checks, made again.
type RepairRequest struct {
	Checks []string `json:"checks" minItems:"1" maxItems:"64"`
}
