package server

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
)

func TestHasInterpreter(t *testing.T) {
	program := func(kinds ...uint32) []byte {
		b := make([]byte, elfHeaderSize)
		copy(b, "\x7fELF\x02\x01")
		binary.LittleEndian.PutUint64(b[elfProgOffset:], elfHeaderSize)
		binary.LittleEndian.PutUint16(b[elfProgSize:], 56)
		binary.LittleEndian.PutUint16(b[elfProgCount:], uint16(len(kinds)))
		for _, k := range kinds {
			b = append(binary.LittleEndian.AppendUint32(b, k), make([]byte, 52)...)
		}
		return b
	}
	for name, tt := range map[string]struct {
		file []byte
		want bool
		bad  bool
	}{
		"static":      {program(1, 1, 2, 4), false, false},
		"dynamic":     {program(6, elfInterpreter, 1, 2), true, false},
		"cut":         {program(1, 1)[:elfHeaderSize+40], false, true},
		"a script":    {[]byte("#!/bin/sh\n" + string(make([]byte, 100))), false, true},
		"empty":       {nil, false, true},
		"many":        {program(make([]uint32, maxELFProgs+1)...), false, true},
		"far away":    {append(program(1)[:elfProgOffset], bytes.Repeat([]byte{0xff}, 40)...), false, true},
		"other class": {append([]byte("\x7fELF\x01\x01"), make([]byte, 100)...), false, true},
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
