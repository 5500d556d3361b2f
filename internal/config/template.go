package config

import "fmt"

// Template is the text of a new configuration file: every key with its default,
// commented out, so that a later version may choose a better default.
func Template() (string, error) {
	h, err := thisHost()
	if err != nil {
		return "", err
	}
	return template(h), nil
}

func template(h host) string {
	d := defaults(h)
	v := d.VMDefaults
	return fmt.Sprintf(`# Configuration of banger. Every key is optional; what is commented out shows
# the default. After a change: systemctl restart bangerd

# How much bangerd writes to the journal: debug, info, warn, error.
#log_level = %q

# What a VM is made of that names neither image nor kernel. The kernel "host" is
# this machine's own, imported at installation.
#default_image = %q
#default_kernel = %q

# Stop VMs that nobody has used for so long: no session, no network traffic, no
# request about them. "0s" is never. A VM can have its own, see vm set --idle-stop.
#auto_stop_stale_after = %q

# What stays free on the disk where VMs' disks lie. Below it nothing starts, and
# running VMs are paused before a full disk can cost them theirs.
#disk_reserve = %q

[vm_defaults]
# Size of a VM that asks for nothing. The defaults follow the host's size.
#vcpu = %d
#memory_mib = %d

# Size of the work disk, mounted at /root and kept when the VM gets a new image.
# "0" is none.
#disk = %q

# Whether a VM may reach what this host can.
#nat = %t

# Virtual size of an imported image. Images and disks are sparse: this takes no
# room until a guest writes.
#image_size = %q

# How long a start may take before it is undone.
#start_timeout = %q
`, d.LogLevel, d.DefaultImage, d.DefaultKernel, d.AutoStopStaleAfter, d.DiskReserve, v.VCPU, v.MemoryMiB, v.Disk, v.NAT, v.ImageSize, v.StartTimeout)
}
