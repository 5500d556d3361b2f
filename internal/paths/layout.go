package paths

import (
	"os"
	"path/filepath"
)

// Layout is where the programs and units of an installation are. The rest is in
// the same places everywhere.
type Layout struct {
	Bin     string // banger itself
	Libexec string // all other programs
	Units   string // the units, as every owner gets them
	// Packaged programs and units belong to the package manager. Nothing of ours
	// writes or removes them.
	Packaged bool
}

// AdminUnits is where systemd expects what belongs to this one host.
const AdminUnits = "/etc/systemd/system"

// The two layouts there are.
var (
	Local        = Layout{Bin: "/usr/local/bin", Libexec: "/usr/local/libexec/banger", Units: AdminUnits}
	Distribution = Layout{Bin: "/usr/bin", Libexec: "/usr/libexec/banger", Units: "/usr/lib/systemd/system", Packaged: true}
)

// LayoutOf returns the layout that a program at this path is part of. One that
// lies in neither, as after a build, is about to be installed, which only Local is.
func LayoutOf(program string) Layout {
	if dir := filepath.Dir(program); dir == Distribution.Bin || dir == Distribution.Libexec {
		return Distribution
	}
	return Local
}

// Here is the layout of the running program: the same programs can be installed
// in both.
var Here = here()

func here() Layout {
	self, err := os.Executable()
	if err != nil {
		return Local // no /proc: a guest before its mounts, where nothing is installed
	}
	return LayoutOf(self)
}

// Of the running program.
var (
	BinDir     = Here.Bin
	LibexecDir = Here.Libexec
)
