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

// VMRequest names a VM; used by vm.release, vm.handover, vm.cleanup.
type VMRequest struct {
	ID string `json:"id"`
}

// KillRequest ends a VM's unit. With NoWait the answer comes when systemd has been
// told, for a caller that watches the end itself.
type KillRequest struct {
	ID     string `json:"id"`
	NoWait bool   `json:"no_wait,omitempty"`
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
// disk, and makes a disk of the work file if there is one. The paths are
// relative to the owner's state directory.
type AttachRequest struct {
	ID      string `json:"id"`
	Base    string `json:"base"`
	Overlay string `json:"overlay"`
	Work    string `json:"work,omitempty"`
}

// Attached describes the VM's disks.
type Attached struct {
	Root Disk  `json:"root"`
	Work *Disk `json:"work,omitempty"`
}

// Disk is a device-mapper device of a VM.
type Disk struct {
	Name  string `json:"name"` // dm name
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	Bytes int64  `json:"bytes"`
}

// GrowRequest makes a VM's work disk as large as its file has become, also
// while the VM runs.
type GrowRequest struct {
	ID string `json:"id"`
}

// FsckRequest checks a disk of a VM that does not run: "root" or "work". What
// can be mended without losing a file is mended; with Repair, everything is,
// whatever it costs.
type FsckRequest struct {
	ID     string `json:"id"`
	Disk   string `json:"disk"`
	Repair bool   `json:"repair,omitempty"`
}

// Checked is what e2fsck said.
type Checked struct {
	Status int    `json:"status"` // 0 clean, 1 mended; everything else is an error
	Output string `json:"output"` // its last lines, control characters stripped
}

// Network is the bridge as bridge.ensure left it.
type Network struct {
	Bridge string `json:"bridge"`
	Prefix string `json:"prefix"` // its own address and the guests' network, 172.16.0.1/16
	// Warnings say what a person should know, e.g. that a foreign firewall
	// drops what guests send.
	Warnings []string `json:"warnings,omitempty"`
}

// NetworkRequest says what guests may do. Whole means that the list is all
// there is; otherwise it changes these guests and no others.
type NetworkRequest struct {
	Guests []GuestNetwork `json:"guests"`
	Whole  bool           `json:"whole,omitempty"`
}

// GuestNetwork is the policy of one guest. Its MAC and address follow from its
// slot; pins hold from vm.handover to the VM's end in any case.
type GuestNetwork struct {
	ID  string `json:"id"`
	NAT bool   `json:"nat,omitempty"`
	// Group names the network whose members may talk to each other; empty
	// means that the guest talks to no other.
	Group string `json:"group,omitempty"`
}

// LaunchRequest starts the VMM of a VM whose disks are attached.
type LaunchRequest struct {
	ID        string `json:"id"`
	Kernel    string `json:"kernel"` // sha256 of a blob
	Initrd    string `json:"initrd"` // sha256 of a blob
	VCPU      int    `json:"vcpu"`
	MemoryMiB int    `json:"memory_mib"`
	// Weights of the unit; 0 = systemd's default, 100.
	CPUWeight int `json:"cpu_weight,omitempty"`
	IOWeight  int `json:"io_weight,omitempty"`
	// Ceilings; 0 = none. The second is in bytes a second of each disk, for
	// reading and for writing.
	CPULimitMillis int   `json:"cpu_limit_millis,omitempty"`
	IOLimitBytes   int64 `json:"io_limit_bytes,omitempty"`
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

// HostFacts are what doctor asks root about.
type HostFacts struct {
	KVM          string `json:"kvm"` // empty = a guest ran on it, otherwise what is wrong
	DeviceMapper string `json:"device_mapper"`
	Loop         string `json:"loop"`
	Tun          string `json:"tun"`
	NFT          string `json:"nft"`
	Forwarding   string `json:"forwarding"` // empty = the host forwards IPv4, as NAT needs
	// Firewall has a sentence for each thing that another firewall takes from
	// guests, with what to do.
	Firewall      []string `json:"firewall,omitempty"`
	Jail          string   `json:"jail"`
	HelperVersion string   `json:"helper_version"`

	// Tree says what is wrong with the owner or mode of the helper's own
	// directories and files; empty = nothing.
	Tree string `json:"tree"`
	// Foreign are names below the helper's directory that no banger made.
	Foreign []string `json:"foreign,omitempty"`
	// Slots and Jails are the ids of VMs that have one.
	Slots []string `json:"slots,omitempty"`
	Jails []string `json:"jails,omitempty"`
	// VMMs are the VMs that have a process. Firecracker has given up all rights
	// only when its VM runs.
	VMMs []VMM `json:"vmms,omitempty"`
}

// VMM is how the processes of a VM are confined.
type VMM struct {
	ID string `json:"id"`
	// Weak says what they have that they should not; empty = nothing.
	Weak string `json:"weak"`
}

// Problem codes of the helper beside those of package api.
const (
	CodeBlobUnknown = "blob_unknown" // vm.launch: send it with blob.put first
	CodeBusy        = "busy"
	CodeUnchecked   = "unchecked" // vm.fsck: e2fsck came to no end
	CodeDamaged     = "damaged"   // vm.fsck: e2fsck could not mend the disk
	CodeVMMEnded    = "vmm_ended" // vm.launch: Firecracker ended before its API socket was there
)
