package doctor

import (
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
			if err := h.rootsAlone(path, unix.S_IFREG); err != nil {
				changes = append(changes, err.Error())
			}
			raw, err := os.ReadFile(h.at(path))
			if err != nil {
				changes = append(changes, fmt.Sprintf("%s cannot be read", path))
			} else if keys := touchy(string(raw), h.ceilingsOf(filepath.Dir(path)), h.memory()); len(keys) > 0 {
				changes = append(changes, fmt.Sprintf("%s sets %s", path, strings.Join(keys, ", ")))
			}
		}
	}
	changes = append(changes, h.journalSettings()...)
	switch {
	case len(changes) > 0:
		return Warn("see that the drop-ins are meant: `systemctl cat` shows them", "%s", strings.Join(changes, "; "))
	case len(files) > 0:
		return Pass("%s: limits and the like", strings.Join(files, ", "))
	}
	return Pass("none")
}

// journalSettings are of somebody else, for the journal of the consoles, and may let it
// grow.
func (h Host) journalSettings() (found []string) {
	for _, top := range []string{"/etc", "/run", "/usr/local/lib", "/usr/lib"} {
		dir := top + "/systemd/journald@banger.conf.d"
		names, err := h.entries(dir)
		if err != nil {
			found = append(found, err.Error())
		}
		for _, name := range names {
			if _, own := h.Units[dir+"/"+name]; !own && strings.HasSuffix(name, ".conf") {
				found = append(found, dir+"/"+name+" changes the journal of the consoles")
			}
		}
	}
	return found
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
	if dir == "systemd-journald@banger.service.d" || dir == "systemd-journald@.service.d" {
		return true
	}
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

// withdrawn are settings that only take something away when they are emptied.
var withdrawn = []string{"SupplementaryGroups", "CapabilityBoundingSet", "AmbientCapabilities", "DeviceAllow", "ReadWritePaths"}

// touchy returns the names of a drop-in's settings that may weaken the unit, which
// has these ceilings, on a host with so much memory.
func touchy(text string, own map[string]string, memory float64) (keys []string) {
	for _, s := range assignments(text) {
		if s.value == "" && slices.Contains(withdrawn, s.key) {
			continue
		}
		allowed := slices.ContainsFunc(harmless, func(p string) bool { return strings.HasPrefix(s.key+"=", p) })
		if slices.Contains(ceilings, s.key) {
			allowed = !lifts(s.key, s.value, own[s.key], memory)
		}
		if !allowed && !slices.Contains(keys, s.key) {
			keys = append(keys, s.key)
		}
	}
	slices.Sort(keys)
	return keys
}

type assignment struct{ key, value string }

// assignments reads a unit as systemd does: a remark ends at its line and does not go
// on behind a backslash, also between the lines of a setting.
func assignments(text string) (all []assignment) {
	var joined strings.Builder
	for line := range strings.Lines(text) {
		if start := strings.TrimSpace(line); start == "" || !strings.ContainsAny(start[:1], "#;") {
			joined.WriteString(line)
		}
	}
	for line := range strings.Lines(strings.ReplaceAll(joined.String(), "\\\n", " ")) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '[' {
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		all = append(all, assignment{strings.TrimSpace(key), strings.TrimSpace(value)})
	}
	return all
}
