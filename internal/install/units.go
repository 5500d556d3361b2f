package install

import (
	"embed"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"text/template"

	"banger/internal/installed"
	"banger/internal/paths"
)

// units are templates over installed.Record, laid out as in paths.UnitDir.
//
//go:embed units
var units embed.FS

// modulesText lists what Firecracker, the disks and the networks need and a
// distribution does not load by itself. KVM's module follows from the CPU.
const modulesText = `# Written by banger system install.
loop
dm_snapshot
tun
bridge
nf_tables
`

// sysctlText lets the host route, which NAT needs. banger's own rules decide
// what comes from and goes to VMs; see docs/network.md for the rest of the host.
const sysctlText = `# Written by banger system install.
net.ipv4.ip_forward = 1
`

// udevText keeps udev from probing the disks of VMs: guests write what is on
// them, and the probe runs as root. It also would hold them open at their end.
const udevText = `# Written by banger system install.
ACTION=="remove", GOTO="banger_end"
KERNEL=="loop*", ATTR{loop/backing_file}=="/var/lib/banger/*", ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1", ENV{SYSTEMD_READY}="0", OPTIONS:="nowatch"
KERNEL=="dm-*", ATTR{dm/name}=="fc-*", ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1", ENV{DM_UDEV_DISABLE_DISK_RULES_FLAG}="1", ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1", ENV{DM_NOSCAN}="1", ENV{SYSTEMD_READY}="0", OPTIONS:="nowatch"
LABEL="banger_end"
`

// renderUnits returns the unit files of an installation and the drop-ins, which
// are for the units that banger-helper makes.
func renderUnits(r installed.Record) (files []file, err error) {
	err = fs.WalkDir(units, "units", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := units.ReadFile(name)
		if err != nil {
			return err
		}
		t, err := template.New(name).Option("missingkey=error").Parse(string(raw))
		if err != nil {
			return err
		}
		var text strings.Builder
		text.WriteString("# Written by banger system install. Own settings: systemctl edit.\n")
		if err := t.Execute(&text, r); err != nil {
			return err
		}
		files = append(files, textFile(filepath.Join(paths.UnitDir, strings.TrimPrefix(name, "units/")), text.String()))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot render the built-in units: %w", err)
	}
	return files, nil
}
