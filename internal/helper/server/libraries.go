package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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

// Offsets and values of a 64-bit ELF, see elf(5).
const (
	elfHeaderSize  = 64
	elfProgOffset  = 32 // e_phoff
	elfProgSize    = 54 // e_phentsize
	elfProgCount   = 56 // e_phnum
	elfInterpreter = 3  // PT_INTERP
	maxELFProgs    = 128
)

// hasInterpreter tells whether a program names one that loads it, the dynamic
// linker. (debug/elf would bring DWARF and zlib into the helper.)
func hasInterpreter(r io.ReaderAt) (bool, error) {
	var head [elfHeaderSize]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return false, fmt.Errorf("cannot read its header: %w", err)
	}
	if string(head[:6]) != "\x7fELF\x02\x01" { // 64 bits, little endian
		return false, errors.New("it is no program for this machine")
	}
	offset := binary.LittleEndian.Uint64(head[elfProgOffset:])
	size := binary.LittleEndian.Uint16(head[elfProgSize:])
	count := binary.LittleEndian.Uint16(head[elfProgCount:])
	if size < 4 || count > maxELFProgs || offset > 1<<32 {
		return false, errors.New("its header is damaged")
	}
	for i := range int64(count) {
		var kind [4]byte
		if _, err := r.ReadAt(kind[:], int64(offset)+i*int64(size)); err != nil {
			return false, fmt.Errorf("cannot read its program headers: %w", err)
		}
		if binary.LittleEndian.Uint32(kind[:]) == elfInterpreter {
			return true, nil
		}
	}
	return false, nil
}
