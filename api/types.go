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
	StateStopping State = "stopping"
	StateStopped  State = "stopped"
	StateFailed   State = "failed"
)

// VM is one virtual machine.
type VM struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	State     State     `json:"state"`
	Reason    string    `json:"reason,omitempty" doc:"why the state is failed, for a person"`
	Image     string    `json:"image"`
	Kernel    string    `json:"kernel"`
	VCPU      int       `json:"vcpu"`
	MemoryMiB int       `json:"memory_mib"`
	Slot      int       `json:"slot"`
	Unit      string    `json:"unit"`
	CreatedAt time.Time `json:"created_at"`
	// StartedAt is the begin of the last start; zero if there was none.
	StartedAt time.Time `json:"started_at,omitzero"`
	// Timing of the last start, in the order of its phases.
	Timing []PhaseTime `json:"timing,omitempty"`
	// Guest is what the agent said when it took its identity.
	Guest *Guest `json:"guest,omitempty"`
}

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
	// NoStart only creates the record.
	NoStart bool `json:"no_start,omitempty"`
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
	VM     *VM             `json:"vm,omitempty" doc:"the VM as it is after a vm operation"`
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

// Check is one finding of doctor.
type Check struct {
	ID     string `json:"id"`
	Status string `json:"status" enum:"pass,warn,fail"`
	Found  string `json:"found"`
	Why    string `json:"why,omitempty"`
	Fix    string `json:"fix,omitempty"`
}
