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
)

// Places beside those of package paths.
const (
	etcDir       = "/etc/banger"
	manifestFile = etcDir + "/files.json"
	cacheDir     = "/var/cache/banger"
	modulesFile  = "/etc/modules-load.d/banger.conf"
	udevFile     = "/etc/udev/rules.d/59-banger.rules"
	dropInDir    = paths.UnitDir + "/banger-vm-.service.d"
	fsckInDir    = paths.UnitDir + "/banger-fsck-.service.d"

	daemonRunDir = "/run/banger"

	subUIDFile = "/etc/subuid"
	subGIDFile = "/etc/subgid"
)

// programs beside banger itself, which goes to paths.BinDir.
var programs = []string{"bangerd", "banger-helper", "banger-agent", "firecracker", "jailer"}

// stateDirs hold what users made. Only a purge removes them.
var stateDirs = []string{paths.StateDir, cacheDir, paths.HelperDir}

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
func directories(own owner) []directory {
	dirs := []directory{
		{path: paths.BinDir, mode: 0o755, shared: true},
		{path: filepath.Dir(paths.LibexecDir), mode: 0o755, shared: true},
		{path: paths.LibexecDir, mode: 0o755},
		{path: filepath.Dir(modulesFile), mode: 0o755, shared: true},
		{path: filepath.Dir(udevFile), mode: 0o755, shared: true},
		{path: filepath.Dir(paths.SysctlFile), mode: 0o755, shared: true},
		{path: dropInDir, mode: 0o755},
		{path: fsckInDir, mode: 0o755},
		{path: paths.HelperDir, mode: 0o711},
		{path: filepath.Dir(paths.BlobDir), mode: 0o700},
		{path: paths.BlobDir, mode: 0o700},
		{path: filepath.Dir(paths.JailDir), mode: 0o711},
		{path: paths.JailDir, mode: 0o711},
	}
	for _, path := range []string{paths.StateDir, paths.StateDir + "/images", paths.StateDir + "/kernels",
		paths.StateDir + "/vms", paths.StateDir + "/identity", cacheDir} {
		dirs = append(dirs, directory{path: path, mode: 0o700, uid: own.uid, gid: own.gid})
	}
	return dirs
}

// files returns every file of the installation with its wanted content.
func (h *host) files(own owner, uidBase int, from string) ([]file, error) {
	files, err := h.programFiles(from)
	if err != nil {
		return nil, err
	}
	sum := func(name string) string {
		i := slices.IndexFunc(files, func(f file) bool { return filepath.Base(f.path) == name })
		return files[i].sum
	}
	record, err := h.record(own, uidBase, sum("firecracker"), sum("jailer"))
	if err != nil {
		return nil, err
	}
	text, err := record.Text()
	if err != nil {
		return nil, fmt.Errorf("cannot write the record of the installation: %w", err)
	}
	if _, err := installed.Parse(text); err != nil {
		return nil, fmt.Errorf("cannot install banger for %s: %w", own.name, err)
	}
	settings, err := config.Template()
	if err != nil {
		return nil, err
	}
	units, err := renderUnits(record)
	if err != nil {
		return nil, err
	}
	files = append(files, textFile(paths.InstallFile, text), textFile(modulesFile, modulesText), textFile(udevFile, udevText), textFile(paths.SysctlFile, sysctlText))
	if _, err := os.Lstat(h.at(paths.ConfigFile)); os.IsNotExist(err) {
		files = append(files, textFile(paths.ConfigFile, settings))
	}
	return append(files, units...), nil
}

// programFiles finds the programs to install. Run from the installed place it
// finds the installed ones.
func (h *host) programFiles(from string) ([]file, error) {
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
	var files []file
	for _, name := range append([]string{"banger"}, programs...) {
		source, target := filepath.Join(from, name), filepath.Join(paths.LibexecDir, name)
		switch {
		case name == "banger":
			target = filepath.Join(paths.BinDir, name)
		case from == h.at(paths.BinDir):
			source = h.at(target)
		}
		sum, err := hashFile(source)
		if err != nil {
			return nil, api.Problemf(412, api.CodePrerequisite, "cannot install %s: %v", name, err).
				WithHint("`make build` puts all programs into build/bin; name that directory with --from")
		}
		files = append(files, file{path: target, mode: 0o755, from: source, sum: sum})
	}
	return files, nil
}
