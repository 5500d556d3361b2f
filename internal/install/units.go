package install

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"text/template"

	"banger/internal/installed"
	"banger/internal/paths"
	"banger/internal/version"
)

// units are the units as every owner gets them: templates over a paths.Layout,
// laid out as below its Units. A package has them as they are rendered here.
//
//go:embed units
var units embed.FS

// ownerUnits are the drop-ins that say whose an installation is: templates over
// installed.Record, laid out as below paths.AdminUnits.
//
//go:embed owner
var ownerUnits embed.FS

// ownerDropIn is the name of each of them, below UNIT.d.
const ownerDropIn = "10-owner.conf"

// modulesText lists what Firecracker, the disks and the networks need and a
// distribution does not load by itself. KVM's module follows from the CPU.
const modulesText = `loop
dm_snapshot
tun
bridge
nf_tables
`

// sysctlText lets the host route, which NAT needs. banger's own rules decide
// what comes from and goes to VMs; see docs/network.md for the rest of the host.
const sysctlText = `net.ipv4.ip_forward = 1
`

// journalText bounds the journal of the VMs' consoles, which is apart from the
// host's. What a VM may add is bounded in its unit, as lines a second.
const journalText = `[Journal]
SystemMaxUse=256M
SystemMaxFileSize=16M
RuntimeMaxUse=32M
RuntimeMaxFileSize=4M
SystemKeepFree=1G
LineMax=4K
ForwardToSyslog=no
ForwardToWall=no
`

// udevText keeps udev from probing the disks of VMs: guests write what is on
// them, and the probe runs as root. It also would hold them open at their end. When
// the helper that made a loop device has gone, and its view of the filesystem with
// it, the kernel tells a path that begins at the state directory.
var udevText = func() string {
	id := strings.Repeat("[0-9a-f]", 12)
	files := "/var/lib/banger/*|/vms/" + id + "/*|/vms/.deleted-" + id + "/*|/images/" + id + "/rootfs.ext4"
	return `ACTION=="remove", GOTO="banger_end"
KERNEL=="loop*", ATTR{loop/backing_file}=="` + files + `", ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1", ENV{SYSTEMD_READY}="0", OPTIONS:="nowatch"
KERNEL=="dm-*", ATTR{dm/name}=="fc-*", ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1", ENV{DM_UDEV_DISABLE_DISK_RULES_FLAG}="1", ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1", ENV{DM_NOSCAN}="1", ENV{SYSTEMD_READY}="0", OPTIONS:="nowatch"
LABEL="banger_end"
`
}()

// stamp begins the first line of every text file of an installation, and the
// version that wrote it follows. What is under it counts: a unit that says the
// same as before is neither written nor a reason to restart anything.
const stamp = "# banger "

// stamped makes a file of an installation from its text.
func stamped(path, text, version string) file {
	f := textFile(path, stamp+version+" (do not edit: it is replaced; own settings of units: systemctl edit)\n"+text)
	f.bare = bareSum([]byte(f.text))
	return f
}

// bareSum is the sha256 of the text without its stamp.
func bareSum(text []byte) string {
	if first, rest, ok := strings.Cut(string(text), "\n"); ok && strings.HasPrefix(first, stamp) {
		text = []byte(rest)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// staticUnits returns the unit files of a layout and the drop-ins for the units
// that banger-helper makes.
func staticUnits(l paths.Layout, version string) ([]file, error) {
	return render(units, "units", l.Units, version, l)
}

// ownersUnits returns the drop-ins of an installation.
func ownersUnits(r installed.Record, version string) ([]file, error) {
	return render(ownerUnits, "owner", paths.AdminUnits, version, r)
}

func render(from embed.FS, top, to, version string, data any) (files []file, err error) {
	err = fs.WalkDir(from, top, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := from.ReadFile(name)
		if err != nil {
			return err
		}
		t, err := template.New(name).Option("missingkey=error").Parse(string(raw))
		if err != nil {
			return err
		}
		var text strings.Builder
		if err := t.Execute(&text, data); err != nil {
			return err
		}
		files = append(files, stamped(filepath.Join(to, strings.TrimPrefix(name, top+"/")), text.String(), version))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot render the built-in units: %w", err)
	}
	return files, nil
}

// PackageUnits returns the text of each unit that a package of this build holds,
// by its path on the host.
func PackageUnits() (map[string]string, error) {
	files, err := staticUnits(paths.Distribution, version.Version)
	if err != nil {
		return nil, err
	}
	texts := map[string]string{}
	for _, f := range files {
		texts[f.path] = f.text
	}
	return texts, nil
}
