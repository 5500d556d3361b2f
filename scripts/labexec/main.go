// Command labexec runs a program built for tests in the lab, as root, in a
// directory with a copy of this one's testdata. The program's output, exit status
// and Ctrl-C are as if it had run here.
//
// The lab may be emulated on a busy host, where a guest stands still for a minute
// and connections break. So the program is a service of the lab, which runs
// whoever listens: its output goes to files, followed over connections that are
// made anew, at the byte where the last one broke. Only where the lab itself is
// gone (its QEMU ended, its system booted again, or nothing answered for minutes)
// does labexec give up: it shows what is known about the end, writes it to
// lab-died beside the lab, and exits with 75. scripts/lab then makes another lab.
//
//	labexec ROOT PROGRAM ARG...     ROOT is the checkout; the lab is in LAB_DIR, or build
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"banger/internal/machine"
)

const (
	labName = "lab"
	// exitDied is EX_TEMPFAIL: not the program's failure, it may be run again.
	exitDied = 75
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: labexec ROOT PROGRAM ARG...")
		os.Exit(2)
	}
	status, err := run(os.Args[1], os.Args[2], os.Args[3:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "labexec:", err)
	}
	os.Exit(status)
}

// run returns the status to exit with. With an error nothing is known of the
// program's own.
func run(root, program string, args []string) (int, error) {
	dir := filepath.Join(root, cmp.Or(os.Getenv("LAB_DIR"), "build"))
	diedFile := filepath.Join(dir, "lab-died")
	if _, err := os.Stat(diedFile); err == nil {
		return exitDied, errors.New("not run: the lab has died before")
	}
	if err := os.Setenv("XDG_DATA_HOME", filepath.Join(dir, "data")); err != nil {
		return 1, err
	}
	m, err := machine.New(labName)
	if err != nil {
		return 1, err
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	l := newLab(m, os.Stderr)
	status, err := l.exec(context.Background(), job{program: program, args: args, stdout: os.Stdout, stderr: os.Stderr}, signals)
	if dead, ok := errors.AsType[*diedError](err); ok {
		report := strings.TrimRight(l.autopsy(dead), "\n") + "\n"
		fmt.Fprint(os.Stderr, report)
		return exitDied, errors.Join(err, os.WriteFile(diedFile, []byte(report), 0o644))
	}
	return status, err
}
