// Package helper is the protocol of banger-helper, the only program of banger
// that runs as root, and its client. The list of verbs is closed; each is
// POST /v1/<verb> with JSON in and out. See docs/security.md.
package helper

// ReserveRequest gives a VM its slot, the small number that its uid and address are
// made of. Reserving again returns the same slot.
type ReserveRequest struct {
	ID string `json:"id"`
}

// Slot is what a VM was given.
type Slot struct {
	Slot int `json:"slot"`
	UID  int `json:"uid"`
}

// VMRequest names a VM; used by vm.release, vm.handover, vm.kill, vm.cleanup.
type VMRequest struct {
	ID string `json:"id"`
}

// BlobPutRequest asks for a root-owned copy of a file. Path is relative to the
// owner's state directory.
type BlobPutRequest struct {
	Path string `json:"path"`
}

// Blob names a stored file by its content.
type Blob struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// BlobGCRequest names the blobs that are still wanted, by sha256.
type BlobGCRequest struct {
	Keep []string `json:"keep"`
}

// AttachRequest joins a read-only base image and an overlay to the VM's root
// disk. Both paths are relative to the owner's state directory.
type AttachRequest struct {
	ID      string `json:"id"`
	Base    string `json:"base"`
	Overlay string `json:"overlay"`
}

// Attached describes the root disk.
type Attached struct {
	Name  string `json:"name"` // dm name
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	Bytes int64  `json:"bytes"`
}

// LaunchRequest starts the VMM of a VM whose disks are attached.
type LaunchRequest struct {
	ID        string `json:"id"`
	Kernel    string `json:"kernel"` // sha256 of a blob
	Initrd    string `json:"initrd"` // sha256 of a blob
	VCPU      int    `json:"vcpu"`
	MemoryMiB int    `json:"memory_mib"`
}

// Launched says where the VMM is.
type Launched struct {
	Unit string `json:"unit"`
	UID  int    `json:"uid"`
	// Root is the jail's root directory on the host.
	Root string `json:"root"`
}

// Empty is the answer of verbs that have nothing to say.
type Empty struct{}

// Exit is systemd's verdict on a VMM that ended, kept in paths.ExitDir/ID.json
// until the VM is launched again or released.
type Exit struct {
	ID       string `json:"id"`
	Result   string `json:"result"`    // $SERVICE_RESULT: success, signal, oom-kill, …
	ExitCode string `json:"exit_code"` // $EXIT_CODE: exited, killed, dumped
	Status   string `json:"status"`    // $EXIT_STATUS: a number or a signal's name
	UnixNano int64  `json:"unix_nano"`
}

// HostFacts are what preflight and doctor ask root about.
type HostFacts struct {
	KVM           string `json:"kvm"` // empty = usable, otherwise what is wrong
	DeviceMapper  string `json:"device_mapper"`
	Loop          string `json:"loop"`
	Tun           string `json:"tun"`
	CgroupV2      string `json:"cgroup_v2"`
	Jail          string `json:"jail"`
	Firecracker   string `json:"firecracker"` // version
	Jailer        string `json:"jailer"`      // version
	Programs      string `json:"programs"`    // empty = both are what was installed
	HelperVersion string `json:"helper_version"`
}

// Problem codes of the helper beside those of package api.
const (
	CodeBlobUnknown = "blob_unknown" // vm.launch: send it with blob.put first
	CodeBusy        = "busy"
	CodeVMMEnded    = "vmm_ended" // vm.launch: Firecracker ended before it answered
)
