package install

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"banger/api"
	"banger/internal/config"
	"banger/internal/installed"
	"banger/internal/paths"
	"banger/internal/version"
)

// Places beside those of package paths.
const (
	etcDir       = "/etc/banger"
	manifestFile = etcDir + "/files.json"
	cacheDir     = "/var/cache/banger"
	modulesFile  = "/etc/modules-load.d/banger.conf"
	udevFile     = "/etc/udev/rules.d/59-banger.rules"
	journalFile  = "/etc/systemd/journald@banger.conf.d/10-banger.conf"

	daemonRunDir = "/run/banger"

	subUIDFile = "/etc/subuid"
	subGIDFile = "/etc/subgid"
)

// programs beside banger itself.
var programs = []string{"bangerd", "banger-helper", "banger-agent", "firecracker", "jailer"}

// stateDirs hold what users made. Only a purge removes them.
var stateDirs = []string{paths.StateDir, cacheDir, paths.HelperDir}

func (h *host) unitPath(name string) string { return filepath.Join(h.layout.Units, name) }

// ownerPath is where the drop-in of a unit is, if it has one.
func ownerPath(unit string) string { return filepath.Join(paths.AdminUnits, unit+".d", ownerDropIn) }

func (h *host) programPath(name string) string {
	if name == "banger" {
		return filepath.Join(h.layout.Bin, name)
	}
	return filepath.Join(h.layout.Libexec, name)
}

// directory is one that the installation needs.
type directory struct {
	path     string
	mode     fs.FileMode
	uid, gid int
	// shared ones belong to the system: left alone if they exist.
	shared bool
}

// directories in the order they are made. Below StateDir root works in a place
// that the owner controls; see makeDir.
func (h *host) directories(own owner, files []file) []directory {
	var dirs []directory
	if !h.layout.Packaged {
		dirs = append(dirs,
			directory{path: h.layout.Bin, mode: 0o755, shared: true},
			directory{path: filepath.Dir(h.layout.Libexec), mode: 0o755, shared: true},
			directory{path: h.layout.Libexec, mode: 0o755})
	}
	for _, path := range []string{modulesFile, udevFile, journalFile, paths.SysctlFile} {
		dirs = append(dirs, directory{path: filepath.Dir(path), mode: 0o755, shared: true})
	}
	for _, f := range files { // of drop-ins; administrators may have made them
		dir := filepath.Dir(f.path)
		made := slices.ContainsFunc(dirs, func(d directory) bool { return d.path == dir })
		if !made && within(paths.AdminUnits, dir) && dir != paths.AdminUnits {
			dirs = append(dirs, directory{path: dir, mode: 0o755, shared: true})
		}
	}
	dirs = append(dirs,
		directory{path: paths.HelperDir, mode: 0o711},
		directory{path: filepath.Dir(paths.BlobDir), mode: 0o700},
		directory{path: paths.BlobDir, mode: 0o700},
		directory{path: filepath.Dir(paths.JailDir), mode: 0o711},
		directory{path: paths.JailDir, mode: 0o711})
	for _, path := range []string{paths.StateDir, paths.StateDir + "/images", paths.StateDir + "/kernels",
		paths.StateDir + "/vms", paths.StateDir + "/identity", cacheDir} {
		dirs = append(dirs, directory{path: path, mode: 0o700, uid: own.uid, gid: own.gid})
	}
	return dirs
}

// wanted is what an installation consists of.
type wanted struct {
	files []file
	// packaged are the files that a package brought. They are only looked at.
	packaged []file
}

// settings are for others than systemd's units.
func settings() []file {
	return []file{
		stamped(modulesFile, modulesText, version.Version),
		stamped(udevFile, udevText, version.Version),
		stamped(journalFile, journalText, version.Version),
		stamped(paths.SysctlFile, sysctlText, version.Version),
	}
}

// want returns every file of the installation with its wanted content.
func (h *host) want(own owner, uidBase int, o Options) (w wanted, err error) {
	progs, err := h.programFiles(o.From)
	if err != nil {
		return w, err
	}
	static, err := staticUnits(h.layout, version.Version)
	if err != nil {
		return w, err
	}
	record, err := h.record(own, uidBase, progs, o)
	if err != nil {
		return w, err
	}
	text, err := record.Text()
	if err != nil {
		return w, fmt.Errorf("cannot write the record of the installation: %w", err)
	}
	if _, err := installed.Parse(text); err != nil {
		return w, fmt.Errorf("cannot install banger for %s: %w", own.name, err)
	}
	owners, err := ownersUnits(record, version.Version)
	if err != nil {
		return w, err
	}
	fixed := slices.Concat(progs, static)
	if h.layout.Packaged {
		w.packaged = fixed
	} else {
		w.files = fixed
	}
	w.files = append(append(append(w.files, owners...), textFile(paths.InstallFile, text)), settings()...)
	if _, err := os.Lstat(h.at(paths.ConfigFile)); os.IsNotExist(err) {
		settings, err := config.Template()
		if err != nil {
			return w, err
		}
		w.files = append(w.files, textFile(paths.ConfigFile, settings))
	}
	return w, nil
}

// programFiles finds the programs to install. Run from the installed place it
// finds the installed ones.
func (h *host) programFiles(from string) ([]file, error) {
	if h.layout.Packaged && from != "" {
		return nil, api.BadRequest("cannot install the programs of %s: this banger is a package's, which has its own", from).
			WithHint("run the banger in that directory")
	}
	if from == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("cannot tell where the running program lies: %w", err)
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return nil, fmt.Errorf("cannot tell where the running program lies: %w", err)
		}
		from = filepath.Dir(self)
	}
	hint := "`make build` puts all programs into build/bin; name that directory with --from"
	if h.layout.Packaged {
		hint = "install the package again"
	}
	var files []file
	for _, name := range append([]string{"banger"}, programs...) {
		target := h.programPath(name)
		source := filepath.Join(from, name)
		if h.layout.Packaged || from == h.at(h.layout.Bin) {
			source = h.at(target)
		}
		sum, err := HashFile(source)
		if err != nil {
			return nil, api.Problemf(412, api.CodePrerequisite, "cannot install %s: %v", name, err).WithHint("%s", hint)
		}
		files = append(files, file{path: target, mode: 0o755, from: source, sum: sum})
	}
	return files, nil
}
