package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// unitDirs are where systemd looks for units and drop-ins, what it prefers
// first. The transient units of VMs are not among them: their own properties
// are kept as drop-ins in /run/systemd/transient.
var unitDirs = []string{
	"/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/generator.early",
	"/etc/systemd/system", "/etc/systemd/system.attached", "/run/systemd/system", "/run/systemd/system.attached",
	"/run/systemd/generator", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/run/systemd/generator.late",
}

// units compares the unit files with what was installed, and asks systemd whether it
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
		return Warn("", "%d unit files are as installed; whether systemd has read them cannot be told: %v", len(h.Units), err)
	}
	if old := unread(out); len(old) > 0 {
		return Fail("sudo systemctl daemon-reload, then sudo banger system restart", "systemd has not read what is in the files of %s", list(old))
	}
	return Pass("%d unit files are as installed", len(h.Units))
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
		if needs {
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
	if strings.HasSuffix(filepath.Clean(dir), ".d") { // a drop-in goes by its directory's name and its own
		dir, name = filepath.Dir(filepath.Clean(dir)), filepath.Base(dir)+"/"+name
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

// dropIns lists what somebody else adds to our units, and warns of all that is
// not known to leave the sandbox alone.
func (h Host) dropIns() Finding {
	var files, changes []string
	for _, dir := range unitDirs {
		found, unseen := h.foreignDropIns(dir)
		for _, err := range unseen {
			changes = append(changes, err.Error())
		}
		for _, path := range found {
			files = append(files, path)
			if own := h.hides(path); own != "" {
				changes = append(changes, fmt.Sprintf("%s may be used in place of %s", path, own))
			}
			raw, err := os.ReadFile(h.at(path))
			if err != nil {
				changes = append(changes, fmt.Sprintf("%s cannot be read", path))
			} else if keys := touchy(string(raw)); len(keys) > 0 {
				changes = append(changes, fmt.Sprintf("%s sets %s", path, strings.Join(keys, ", ")))
			}
		}
	}
	switch {
	case len(changes) > 0:
		return Warn("see that the drop-ins are meant: `systemctl cat` shows them", "%s", strings.Join(changes, "; "))
	case len(files) > 0:
		return Pass("%s: limits and the like", strings.Join(files, ", "))
	}
	return Pass("none")
}

// foreignDropIns are those below one of systemd's directories that concern us
// and that no installation wrote. What cannot be seen is an error for each: root's
// systemd sees it.
func (h Host) foreignDropIns(dir string) (found []string, unseen []error) {
	units, err := h.entries(dir)
	if err != nil {
		return nil, []error{err}
	}
	for _, unit := range units {
		if !concernsUs(unit) {
			continue
		}
		names, err := h.entries(dir + "/" + unit)
		if err != nil {
			unseen = append(unseen, err)
		}
		for _, name := range names {
			path := dir + "/" + unit + "/" + name
			if _, own := h.Units[path]; !own && strings.HasSuffix(name, ".conf") {
				found = append(found, path)
			}
		}
	}
	return found, unseen
}

// entries are the names in a directory, none if there is no such directory.
func (h Host) entries(dir string) (names []string, err error) {
	all, err := os.ReadDir(h.at(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%s cannot be looked at", dir)
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names, nil
}

// hides finds the drop-in of ours that one of somebody else's replaces for some
// VM. Of those with one name systemd reads the one in the longest directory alone.
func (h Host) hides(path string) string {
	for _, own := range slices.Sorted(maps.Keys(h.Units)) {
		if filepath.Base(own) == filepath.Base(path) && closer(filepath.Base(filepath.Dir(path)), filepath.Base(filepath.Dir(own))) {
			return own
		}
	}
	return ""
}

// closer tells whether a directory is for some of the units that another one is
// for, as banger-vm-ID.service.d is for one of banger-vm-.service.d.
func closer(some, all string) bool {
	i := strings.LastIndex(all, "-.")
	return i >= 0 && some != all && strings.HasPrefix(some, all[:i+1]) && strings.HasSuffix(some, all[i+1:])
}

// concernsUs tells whether the drop-ins in a directory of that name are for a
// unit of ours, or for every unit of a kind.
func concernsUs(dir string) bool {
	for _, kind := range []string{"service", "socket", "slice"} {
		name, ok := strings.CutSuffix(dir, kind+".d")
		if ok && (name == "" || strings.HasPrefix(name, "banger") && strings.HasSuffix(name, ".")) {
			return true
		}
	}
	return false
}

// harmless begin the names of settings that take no wall of the sandbox down.
// Whatever is not listed may.
var harmless = []string{
	"Description=", "Documentation=", "After=", "Before=", "Wants=", "WantedBy=",
	"CPU", "AllowedCPUs=", "AllowedMemoryNodes=", "StartupCPUWeight=", "StartupIOWeight=", "NUMA",
	"MemoryAccounting=", "MemoryMin=", "MemoryLow=", "MemoryHigh=", "MemoryMax=", "MemorySwapMax=", "MemoryZSwapMax=",
	"IO", "Tasks", "Limit", "Nice=", "OOMScoreAdjust=", "Restart", "Timeout", "LogLevelMax=", "LogRateLimit",
	"MemoryPressure", "ManagedOOM",
}

// ceilings keep a guest from what is the host's, unless they are lifted.
var ceilings = []string{"TasksMax", "MemoryMax", "MemorySwapMax", "LimitCORE", "LogRateLimitIntervalSec", "LogRateLimitBurst"}

// lifts tells whether a drop-in takes a ceiling away. A core file holds a guest's
// memory, so any size of it counts.
func lifts(key, value string) bool {
	switch key {
	case "LimitCORE":
		return value != "0"
	case "LogRateLimitIntervalSec", "LogRateLimitBurst":
		return value == "" || value == "0"
	}
	return value == "" || value == "infinity" || value == "100%"
}

// withdrawn are settings that only take something away when they are emptied.
var withdrawn = []string{"SupplementaryGroups", "CapabilityBoundingSet", "AmbientCapabilities", "DeviceAllow", "ReadWritePaths"}

// touchy returns the names of a drop-in's settings that may weaken the unit.
func touchy(text string) (keys []string) {
	text = strings.ReplaceAll(text, "\\\n", " ")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.ContainsAny(line[:1], "#;[") {
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if value == "" && slices.Contains(withdrawn, key) {
			continue
		}
		allowed := slices.ContainsFunc(harmless, func(p string) bool { return strings.HasPrefix(key+"=", p) })
		if slices.Contains(ceilings, key) {
			allowed = !lifts(key, value)
		}
		if !allowed && !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
