package doctor

import (
	"context"
	"debug/elf"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/paths"
)

// installationChecks are asked where banger is installed.
var installationChecks = []struct {
	id, why string
	look    func(Host) Finding
}{
	{"programs", "the jailer starts as root and trusts what it is given; a dynamic program brings the host's libraries into the jail", Host.programs},
	{"drop-ins", "a setting that is added can take a wall of the sandbox down", Host.dropIns},
	{"sockets", "who may connect may do all that banger can", Host.sockets},
	{"filesystems", "kernels, jails and what consoles print need room as well", Host.otherFilesystems},
}

// InstallationQuestions are about what was installed, and need no rights.
func (h Host) InstallationQuestions() []Question {
	var all []Question
	for _, c := range installationChecks {
		all = append(all, One(c.id, c.why, func(context.Context) Finding { return c.look(h) }))
	}
	return append(all,
		One("units", "the sandbox of the services and of every VM is in them", h.units),
		One("uid-range", "a uid must mean one VM and nobody else", h.uidRange),
		One("clock", "certificates and the guests' own clocks are made by it", h.clock),
		h.firecrackerQuestion())
}

const reinstall = "sudo banger system install"

// services are our own programs: one runs as root, one holds all VMs, and one
// goes into every guest.
var services = []string{"banger-helper", "bangerd", "banger-agent"}

func (h Host) programs() Finding {
	var dynamic []string
	vmms := []string{h.Record.Firecracker, h.Record.Jailer}
	all := vmms
	for _, name := range services {
		all = append(all, paths.LibexecDir+"/"+name)
	}
	for _, path := range all {
		if err := h.rootsAlone(path, unix.S_IFREG); err != nil {
			return Fail(reinstall, "%v", err)
		}
		for dir := filepath.Dir(path); dir != "/" && dir != "."; dir = filepath.Dir(dir) {
			if err := h.rootsAlone(dir, unix.S_IFDIR); err != nil {
				return Fail("sudo chown root "+dir+"; sudo chmod go-w "+dir, "%v", err)
			}
		}
	}
	for _, path := range vmms {
		static, err := isStatic(h.at(path))
		if err != nil {
			return Fail(reinstall, "%v", err)
		}
		if !static {
			dynamic = append(dynamic, path)
		}
	}
	if len(dynamic) > 0 {
		return Warn("install the static ones of a release", "%s needs the host's libraries", strings.Join(dynamic, " and "))
	}
	return Pass("static, root's, and written by nobody else")
}

// rootsAlone refuses what others than root can write.
func (h Host) rootsAlone(path string, kind uint32) error {
	st, err := h.stat(path)
	switch {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != kind:
		return fmt.Errorf("%s is of another kind than it should be", path)
	case int(st.Uid) != h.RootUID:
		return fmt.Errorf("%s belongs to uid %d, not to root", path, st.Uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("%s can be written by others than root (mode %04o)", path, st.Mode&0o7777)
	}
	return nil
}

func (h Host) stat(path string) (st unix.Stat_t, err error) {
	if err := unix.Lstat(h.at(path), &st); err != nil {
		return st, fmt.Errorf("cannot look at %s: %w", path, err)
	}
	return st, nil
}

// isStatic tells whether a program runs without an interpreter, and so without
// the host's libraries.
func isStatic(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, fmt.Errorf("cannot read %s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}

func (h Host) sockets() Finding {
	const fix = "sudo systemctl restart bangerd.socket banger-helper.socket"
	for _, path := range []string{paths.DaemonSocket, paths.HelperSocket} {
		st, err := h.stat(path)
		switch {
		case err != nil:
			return Fail(fix, "%v", err)
		case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
			return Fail(fix, "%s is no socket", path)
		case int(st.Uid) != h.Record.UID || st.Mode&0o777 != 0o600:
			return Fail(fix, "%s has mode %04o and belongs to uid %d; want 0600 and %s", path, st.Mode&0o7777, st.Uid, h.Record.Owner)
		}
		dir, err := h.stat(filepath.Dir(path))
		if err != nil {
			return Fail(fix, "%v", err)
		}
		// systemd gives bangerd's runtime directory to its user.
		if own := int(dir.Uid) == h.Record.UID && path == paths.DaemonSocket; dir.Mode&0o022 != 0 || int(dir.Uid) != h.RootUID && !own {
			return Fail(fix, "%s has mode %04o and belongs to uid %d: somebody could put another socket there", filepath.Dir(path), dir.Mode&0o7777, dir.Uid)
		}
	}
	return Pass("both are for %s alone", h.Record.Owner)
}

// Versions compares the programs that are one installation.
func (h Host) Versions(daemon, helper string) Finding {
	switch {
	case daemon != helper:
		return Warn("sudo systemctl restart bangerd banger-helper", "daemon is %s, helper is %s", daemon, helper)
	case daemon != h.Record.Version:
		return Warn("sudo systemctl restart bangerd banger-helper", "%s is installed, but %s runs", h.Record.Version, daemon)
	}
	return Pass("daemon and helper are %s", daemon)
}

// Agents compares the agents in running VMs, by name, with the daemon.
func Agents(daemon string, agents map[string]string) Finding {
	var old []string
	for name, v := range agents {
		if v != daemon {
			old = append(old, fmt.Sprintf("%s (%s)", name, v))
		}
	}
	if len(old) == 0 {
		return Pass("those of %d running VMs are of this banger", len(agents))
	}
	return Warn("banger vm restart them when it suits", "agents of another version are in %s", list(old))
}
