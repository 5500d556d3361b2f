package server

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"testing"
)

func TestHasInterpreter(t *testing.T) {
	program := func(machine elf.Machine, kinds ...elf.ProgType) []byte {
		head := elf.Header64{Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: uint16(len(kinds))}
		var b bytes.Buffer
		must(t, binary.Write(&b, binary.LittleEndian, head))
		for _, k := range kinds {
			must(t, binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(k)}))
		}
		return b.Bytes()
	}
	load, dynamic := elf.PT_LOAD, elf.PT_INTERP
	for name, tt := range map[string]struct {
		file []byte
		want bool
		bad  bool
	}{
		"static":          {program(elf.EM_X86_64, load, load, elf.PT_NOTE), false, false},
		"dynamic":         {program(elf.EM_X86_64, load, dynamic, load), true, false},
		"another machine": {program(elf.EM_AARCH64, load, dynamic), false, true},
		"cut":             {program(elf.EM_X86_64, load, load)[:100], false, true},
		"a script":        {[]byte("#!/bin/sh\n" + string(make([]byte, 100))), false, true},
		"empty":           {nil, false, true},
	} {
		got, err := hasInterpreter(bytes.NewReader(tt.file))
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestMakeMountPoints(t *testing.T) {
	root := t.TempDir()
	must(t, makeMountPoints(root, libraries))
	for _, dir := range []string{"/usr", "/usr/lib", "/lib", "/lib64"} {
		if info, err := os.Lstat(root + dir); err != nil || info.Mode() != os.ModeDir|0o755 {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
	}
}
