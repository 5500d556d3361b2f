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

	"banger/internal/guest"
	"banger/internal/helper"
	"banger/internal/paths"
)

// Everything a VM has on a host is named after its id, so what it left is found
// by looking for names.

// trace is a place where such names are, and how they look there.
type trace struct {
	what, pattern string
	before        []string // of the id, one of these
	after         string
	// inFile: the name is what the file has in it.
	inFile bool
	// disk: files of the owner, which may be somebody's only copy. Only a
	// person removes them.
	disk bool
}

var traces = []trace{
	{what: "tap", pattern: "/sys/class/net/tap*", before: []string{"tap"}},
	{what: "disk", pattern: "/sys/block/dm-*/dm/name", before: []string{"fc-rootfs-", "fc-work-"}, inFile: true},
	{what: "unit", pattern: "/sys/fs/cgroup/banger.slice/banger-*.service", before: []string{"banger-vm-", "banger-fsck-"}, after: ".service"},
	{what: "exit record", pattern: paths.ExitDir + "/*.json", before: []string{""}, after: ".json"},
	{what: "directory", pattern: paths.StateDir + "/vms/*", before: []string{""}, disk: true},
	{what: deleted, pattern: paths.StateDir + "/vms/.*", before: []string{doomed}},
}

// A delete renames the VM's directory first, which nobody wants any more.
const (
	doomed  = ".deleted-"
	deleted = "directory of a delete"
)

// id finds the VM's id in a name.
func (t trace) id(name string) (string, bool) {
	for _, before := range t.before {
		id, begins := strings.CutPrefix(name, before)
		id, ends := strings.CutSuffix(id, t.after)
		if begins && ends && guest.ValidID(id) {
			return id, true
		}
	}
	return "", false
}

// Leftovers are the ids of VMs that left something, with what.
type Leftovers map[string][]string

// Traces finds what there is of VMs, in the kernel and as files. Who wants to
// know what is left over asks for the VMs that exist afterwards, so that one
// that was made meanwhile is among them.
func (h Host) Traces(f helper.HostFacts) (kernel, files Leftovers, err error) {
	kernel, files = Leftovers{}, Leftovers{}
	for _, id := range f.Slots {
		kernel[id] = append(kernel[id], "slot")
	}
	for _, id := range f.Jails {
		kernel[id] = append(kernel[id], "jail")
	}
	for _, t := range traces {
		found, err := filepath.Glob(h.at(t.pattern))
		if err != nil { // the patterns are ours
			return nil, nil, err
		}
		for _, path := range found {
			name := filepath.Base(path)
			if t.inFile {
				raw, err := os.ReadFile(path)
				if err != nil { // gone meanwhile
					continue
				}
				name = strings.TrimSpace(string(raw))
			}
			id, ok := t.id(name)
			switch {
			case !ok:
			case t.disk:
				files[id] = append(files[id], t.what)
			default:
				kernel[id] = append(kernel[id], t.what)
			}
		}
	}
	return kernel, files, nil
}

// Forget drops what belongs to VMs that exist.
func (l Leftovers) Forget(known []string) {
	for _, id := range known {
		delete(l, id)
	}
}

// ForgetEnded drops VMs whose delete has ended meanwhile: there the directory
// goes after the record.
func (h Host) ForgetEnded(l Leftovers) {
	maps.DeleteFunc(l, func(id string, what []string) bool {
		if !slices.Equal(what, []string{deleted}) {
			return false
		}
		_, err := os.Lstat(h.at(paths.StateDir + "/vms/" + doomed + id))
		return errors.Is(err, fs.ErrNotExist)
	})
}

// IDs are the VMs', in order.
func (l Leftovers) IDs() []string { return slices.Sorted(maps.Keys(l)) }

func (l Leftovers) list() string {
	var all []string
	for id, what := range l {
		all = append(all, fmt.Sprintf("VM %s (%s)", id, strings.Join(what, ", ")))
	}
	return list(all)
}

// JudgeLeftovers tells of what no VM has any more.
func JudgeLeftovers(kernel, files Leftovers, loops []Loop) Finding {
	all := []Finding{Pass("none")}
	if len(kernel) > 0 {
		f := Warn("banger doctor --fix", "something is left of %s", kernel.list())
		f.Repair = "end what is left of " + list(kernel.IDs()) + ", remove its jails, disks, taps and deleted directories, and free its slots"
		all = append(all, f)
	}
	if len(files) > 0 {
		all = append(all, Warn("look into the directories, and remove them", "directories in %s/vms belong to no VM: %s", paths.StateDir, list(files.IDs())))
	}
	if len(loops) > 0 {
		all = append(all, judgeLoops(loops))
	}
	return together(all)
}
