package doctor

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/install"
)

// unitDirs are where systemd looks for units and drop-ins, what it prefers
// first. The transient units of VMs are not among them: their own properties
// are kept as drop-ins in /run/systemd/transient.
var unitDirs = []string{
	"/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/generator.early",
	"/etc/systemd/system", "/etc/systemd/system.attached", "/run/systemd/system", "/run/systemd/system.attached",
	"/run/systemd/generator", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/run/systemd/generator.late",
}

// units compares units and settings with what was installed, and asks systemd whether it
// has read them since they were changed.
func (h Host) units(ctx context.Context) Finding {
	var wrong []string
	for _, path := range slices.Sorted(maps.Keys(h.Units)) {
		raw, err := os.ReadFile(h.at(path))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			wrong = append(wrong, path+" is missing")
		case err != nil:
			wrong = append(wrong, err.Error())
		case bare(string(raw)) != bare(h.Units[path]):
			wrong = append(wrong, path+" is not what this banger installs")
		default:
			if err := h.rootsAlone(path, unix.S_IFREG); err != nil {
				wrong = append(wrong, err.Error())
			}
		}
		if other := h.preferred(path); other != "" {
			wrong = append(wrong, other+" is used in place of "+path)
		}
	}
	if len(wrong) > 0 {
		return Fail("sudo banger system install; own settings belong into drop-ins, see `systemctl edit`", "%s", strings.Join(wrong, "; "))
	}
	out, err := h.run(ctx, "systemctl", "show", "--property=Id,NeedDaemonReload", "banger*.service", "banger*.socket", "banger.slice")
	if err != nil {
		return Warn("", "%d files are as installed; whether systemd has read them cannot be told: %v", len(h.Units), err)
	}
	if old := unread(out); len(old) > 0 {
		return Fail("sudo systemctl daemon-reload, then sudo banger system restart", "systemd has not read what is in the files of %s", list(old))
	}
	return Pass("%d files are as installed", len(h.Units))
}

// unread are the units of which `systemctl show` says so, a paragraph each.
func unread(shown string) (names []string) {
	for unit := range strings.SplitSeq(shown, "\n\n") {
		name, needs := "", false
		for line := range strings.Lines(unit) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "Id":
				name = value
			case "NeedDaemonReload":
				needs = value == "yes"
			}
		}
		if needs && install.IsOurUnit(name) {
			names = append(names, name)
		}
	}
	return names
}

// bare is what systemd takes from a unit: no remarks, which name the version, too.
func bare(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && line[0] != ';' {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// preferred finds a file that systemd reads instead of the one at path.
func (h Host) preferred(path string) string {
	dir, name := filepath.Split(path)
	if strings.HasSuffix(filepath.Clean(dir), ".service.d") || strings.HasSuffix(filepath.Clean(dir), ".socket.d") { // a drop-in goes by its directory's name and its own
		dir, name = filepath.Dir(filepath.Clean(dir)), filepath.Base(dir)+"/"+name
	}
	if !slices.Contains(unitDirs, filepath.Clean(dir)) {
		return "" // what is no unit
	}
	for _, better := range unitDirs {
		if better == filepath.Clean(dir) {
			return ""
		}
		if _, err := os.Lstat(h.at(better + "/" + name)); err == nil {
			return better + "/" + name
		}
	}
	return ""
}
