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

[vm_defaults]
# Size of a VM that asks for nothing. The defaults follow the host's size.
#vcpu = %d
#memory_mib = %d

# Virtual size of an imported image. Images and disks are sparse: this takes no
# room until a guest writes.
#image_size = %q

# How long a start may take before it is undone.
#start_timeout = %q
`, d.LogLevel, d.DefaultImage, d.DefaultKernel, v.VCPU, v.MemoryMiB, v.ImageSize, v.StartTimeout)
}
