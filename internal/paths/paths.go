// Package paths names every place banger keeps something on a host, so that
// the layout can be read on one page. Where programs and units are depends on
// where the running program lies, see layout.go.
package paths

// Places of an installed banger.
const (
	ConfigFile  = "/etc/banger/config.toml"
	InstallFile = "/etc/banger/install.toml"

	// StateDir belongs to the owner, 0700.
	StateDir = "/var/lib/banger"
	// HelperDir belongs to root, 0711: blobs/, jail/ and slots.json, one mount.
	HelperDir = "/var/lib/banger-helper"
	JailDir   = HelperDir + "/jail/firecracker"
	BlobDir   = HelperDir + "/blobs/sha256"

	// RunDir outlives bangerd, and not the host's boot.
	RunDir       = "/run/banger"
	DaemonSocket = RunDir + "/bangerd.sock"
	HelperRunDir = "/run/banger-helper"
	HelperSocket = HelperRunDir + "/helper.sock"
	// ExitDir holds ID.json for each VMM that ended, written by root.
	ExitDir = HelperRunDir + "/exit"

	// SysctlFile lets the host forward what guests with NAT send.
	SysctlFile = "/etc/sysctl.d/60-banger.conf"
	// ForwardSwitch says whether it does: 1 or 0.
	ForwardSwitch = "/proc/sys/net/ipv4/ip_forward"
)

// Inside every jail, the same in each, since a snapshot can only be loaded
// where its files have the same names.
const (
	JailKernel = "/vmlinux"
	JailInitrd = "/initrd"
	JailRootfs = "/rootfs"
	JailWork   = "/work"
	// JailMetrics is a FIFO, so what a VMM writes there is bounded.
	JailMetrics = "/metrics"

	JailAPI   = "/run/api.sock"
	JailVsock = "/run/vsock.sock"
)
