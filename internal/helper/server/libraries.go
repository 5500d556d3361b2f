package server

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"slices"
)

// libraries are what a Firecracker that is not static needs of the host. It sees
// them in its jail, read only; a static one, as upstream's is, sees nothing.
var libraries = []string{"/usr/lib", "/lib", "/lib64"}

// vmmLibraries are those that the installed Firecracker needs.
func (s *Server) vmmLibraries() (out []string, err error) {
	f, err := openTrusted(s.record.Firecracker)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	dynamic, err := hasInterpreter(f)
	if err != nil {
		return nil, fmt.Errorf("cannot tell whether %s needs libraries: %w", s.record.Firecracker, err)
	}
	if dynamic {
		return libraries, nil
	}
	return nil, nil
}

// makeMountPoints makes what systemd mounts the libraries over, each part of a
// path by itself: the umask would close those that are made on the way.
func makeMountPoints(root string, dirs []string) error {
	for _, dir := range dirs {
		for i := range dir + "/" {
			if i == 0 || i < len(dir) && dir[i] != '/' {
				continue
			}
			if err := makeDir(root+dir[:i], 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasInterpreter tells whether a program names one that loads it, the dynamic
// linker.
func hasInterpreter(r io.ReaderAt) (bool, error) {
	program, err := elf.NewFile(r)
	if err != nil {
		return false, err
	}
	if program.Machine != elf.EM_X86_64 {
		return false, fmt.Errorf("it is for another machine (%s)", program.Machine)
	}
	return slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }), nil
}
