//go:build e2e

package hostile

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The bombs: what a VMM can do without any right is to use things up.

// bomb begins and returns at once; what comes of it is seen from outside.
func bomb(kind string) error {
	switch kind {
	case "memory":
		go fillMemory()
	case "tasks":
		go forkForever()
	case "console":
		go printForever()
	default:
		return fmt.Errorf("%q is unknown", kind)
	}
	return nil
}

func fillMemory() {
	const block = 16 << 20
	for {
		m, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			continue
		}
		for i := 0; i < block; i += 4096 {
			m[i] = 1
		}
	}
}

// forkForever starts processes that only use the CPU, and each has threads.
func forkForever() {
	for {
		p, err := os.StartProcess("/firecracker", []string{"firecracker"}, &os.ProcAttr{
			Env: []string{attemptEnv + "=" + spinning}, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
		if err == nil {
			_ = p.Release()
		}
	}
}

func printForever() {
	line := append(bytes.Repeat([]byte("flood "), 300), '\n')
	lines := bytes.Repeat(line, 32)
	for {
		if _, err := os.Stdout.Write(lines); err != nil {
			return
		}
	}
}
