// Package guest is what bangerd and banger-agent say to each other: HTTP with
// JSON on vsock port 1024 (GET /v1/health, PUT /v1/identity, POST
// /v1/shutdown, POST /v1/grow, GET /v1/end, GET /v1/ports), where the CLI runs
// commands too (POST /v1/exec), and SSH on port 22 for ssh clients. The agent
// never trusts the image it runs in to hold anything; bangerd never trusts the
// agent's answers.
package guest

// Ports the agent listens on.
const (
	ControlPort = 1024
	SSHPort     = 22
)

// MaxRequest is the size of the largest request the agent reads.
const MaxRequest = 1 << 20

// MaxPorts is how many ports the agent tells of.
const MaxPorts = 1024

// Exec is POST /v1/exec: a command by argv, run as root without a shell. Its
// streams follow on the same connection, see package stream.
type Exec struct {
	Argv []string `json:"argv,omitempty"` // empty: root's login shell
	Dir  string   `json:"dir,omitempty"`  // absolute; empty: the image's, else the home directory
	Env  []string `json:"env,omitempty"`  // K=V, on top of the image's
	TTY  *TTY     `json:"tty,omitempty"`  // nil: three pipes
}

// TTY is a terminal for a command, like the one the person has.
type TTY struct {
	Term string `json:"term"`
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Phase tells how far the guest is.
type Phase string

// Phases in order. From PhaseReady on, SSH is served.
const (
	PhaseWaiting Phase = "waiting" // for the identity
	PhaseReady   Phase = "ready"   // the image's root is up, sessions work
	PhaseEnding  Phase = "ending"  // shutdown asked for
)

// Health is GET /v1/health.
type Health struct {
	Phase   Phase  `json:"phase"`
	Version string `json:"version"`
	Kernel  string `json:"kernel"`  // uname -r
	BootID  string `json:"boot_id"` // /proc/sys/kernel/random/boot_id
	Init    string `json:"init"`    // what is pid 1: path of the image's init, or "agent"
	// Sessions is how many commands, shells and transfers are under way.
	Sessions int `json:"sessions"`
}

// Identity is PUT /v1/identity: all that makes this guest this VM. It is
// accepted once per boot.
type Identity struct {
	ID       string `json:"id"`
	Hostname string `json:"hostname"`
	Root     Root   `json:"root"`
	SSH      SSH    `json:"ssh"`
	// UnixNano is the wall clock, 0 = leave it.
	UnixNano int64 `json:"unix_nano,omitempty"`
	// Entropy is mixed into and credited to the kernel's pool.
	Entropy []byte   `json:"entropy,omitempty"`
	Env     []string `json:"env,omitempty"`     // K=V of the image, for every session
	WorkDir string   `json:"workdir,omitempty"` // of the image
	Files   []File   `json:"files,omitempty"`
	// Network is the guest's one network card; nil leaves it down.
	Network *Network `json:"network,omitempty"`
	// Mounts are made in this order, before the image's init starts.
	Mounts []Mount `json:"mounts,omitempty"`
}

// Network is set before the image's init starts. There is no DHCP.
type Network struct {
	MAC     string   `json:"mac"`     // finds the card
	Address string   `json:"address"` // with the length of its prefix: 172.16.0.5/16
	Gateway string   `json:"gateway"`
	DNS     []string `json:"dns,omitempty"`    // addresses for /etc/resolv.conf
	Search  []string `json:"search,omitempty"` // domains for it
}

// Mount is a further filesystem of the guest.
type Mount struct {
	Device string `json:"device"` // /dev/vdb
	FSType string `json:"fstype"` // ext4
	Path   string `json:"path"`   // absolute, made if it is not there
	// Fill copies what the image has at Path into the filesystem the first
	// time it is mounted; cut off, it begins again.
	Fill bool `json:"fill,omitempty"`
	// Grow enlarges the filesystem to its device.
	Grow bool `json:"grow,omitempty"`
}

// Grow is POST /v1/grow: enlarge the filesystem mounted at Path to its device.
type Grow struct {
	Path string `json:"path"`
}

// Intent is what a guest does next, told on GET /v1/end: that request is
// answered when the image's init begins to end, and never otherwise.
type Intent struct {
	// Action is ActionReboot or ActionPowerOff; after the second a VMM has to
	// be killed, since Firecracker idles for ever.
	Action string `json:"action"`
}

// What a guest may intend.
const (
	ActionReboot   = "reboot"
	ActionPowerOff = "poweroff"
)

// Port is a socket in the guest on which something listens; GET /v1/ports
// lists them.
type Port struct {
	Protocol string `json:"protocol"` // tcp, udp
	Address  string `json:"address"`
	Port     int    `json:"port"`
	Process  string `json:"process,omitempty"` // its name
}

// Root says where the image is.
type Root struct {
	Device   string `json:"device"` // /dev/vda
	FSType   string `json:"fstype"` // ext4
	ReadOnly bool   `json:"read_only,omitempty"`
	// Init is the image's init; empty means look for one, and let the agent
	// stay pid 1 if there is none.
	Init string `json:"init,omitempty"`
}

// SSH is the authority of this installation as the guest needs to know it.
type SSH struct {
	UserCA   string `json:"user_ca"`   // authorized_keys line of the user authority
	HostKey  string `json:"host_key"`  // PEM, OpenSSH format
	HostCert string `json:"host_cert"` // authorized_keys line
}

// File is written into the image before its init starts.
type File struct {
	Path    string `json:"path"` // absolute, no .. and no symlink followed out of the root
	Mode    uint32 `json:"mode"`
	Content []byte `json:"content"`
}

// Shutdown is POST /v1/shutdown. The agent answers, syncs, and makes the guest
// reboot, which is what ends Firecracker.
type Shutdown struct {
	// GraceSeconds is how long processes get before they are killed where the
	// agent itself is pid 1.
	GraceSeconds int `json:"grace_seconds,omitempty"`
}

// Ending is the answer to Shutdown.
type Ending struct {
	// Sound means that the guest's kernel has noted no error of a filesystem.
	Sound bool `json:"sound,omitempty"`
}
