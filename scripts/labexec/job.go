package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// job is a program to run in the lab.
type job struct {
	program        string
	args           []string
	stdout, stderr io.Writer
}

// Scripts for the lab. DIR holds the program, the script that runs it, its output
// (out, err), its process (pid) and in the end its exit status (status); the last
// two appear whole.
const (
	unpackScript = `rm -rf "$1" && mkdir -m 0700 "$1" && tar --warning=no-timestamp -C "$1" -xzf -`

	// Started once, however often it is asked for.
	startScript = `if ! [ -e "$1/pid" ] && ! systemctl --quiet is-active "$2"; then
			systemd-run --quiet --collect --unit="$2" --property=OOMPolicy=continue --property=TimeoutStopSec=15 \
				--setenv=HOME=/root --setenv=USER=root --setenv=SHELL=/bin/sh sh "$1/` + serviceFile + `" || exit 1
		fi
		n=0; while [ ! -s "$1/pid" ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done; cat "$1/pid"`

	// tail ends by itself when the process has and all was read.
	followScript = `exec tail --silent --sleep-interval=0.2 --pid="$2" --follow --bytes=+"$3" -- "$1"`

	// Without a status the shell itself was killed: the kernel may know why.
	endScript = `cd "$1" || exit 1; if [ -e status ]; then cat status; else echo killed; dmesg | grep -iE 'out of memory|oom-kill' | tail -n 5 >&2; fi
		cd / && rm -rf "$1"`
)

// serviceFile is the script that systemd runs, which would read "$" and "%" in
// arguments in its own way.
const serviceFile = ".lab-exec.sh"

// passed are the variables that tests in the lab get from here.
var passed = []string{"FAULTS", "FAULTS_CYCLES", "FAULTS_SEED"}

// service is the script's text. Signals are for the program: the shell has to
// outlive it, to tell its status.
func (j job) service() string {
	var argv strings.Builder
	for _, name := range passed {
		if value, set := os.LookupEnv(name); set {
			argv.WriteString(name + "=" + quote(value) + " ")
		}
	}
	argv.WriteString(quote("./" + filepath.Base(j.program)))
	for _, arg := range j.args {
		argv.WriteString(" " + quote(arg))
	}
	return `cd "$(dirname "$0")" || exit 1; trap : INT TERM; : >out; : >err; echo $$ >pid.new; mv pid.new pid
` + argv.String() + ` >out 2>err </dev/null; echo $? >status.new; mv status.new status
`
}

func quote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

// exec runs the job to its end and returns its exit status. A signal ends the
// job too.
func (l *lab) exec(ctx context.Context, j job, signals <-chan os.Signal) (int, error) {
	starting, cancel := context.WithCancel(ctx)
	defer cancel()
	type started struct {
		dir, unit, pid string
		err            error
	}
	begun := make(chan started, 1)
	go func() {
		dir, unit, pid, err := l.start(starting, j)
		begun <- started{dir, unit, pid, err}
	}()
	select {
	case s := <-begun:
		if s.err != nil {
			return 1, s.err
		}
		return l.attend(ctx, j, s.dir, s.unit, s.pid, signals)
	case sig := <-signals:
		cancel()
		if s := <-begun; s.unit != "" { // it may run already
			bounded, done := context.WithTimeout(ctx, gentle)
			defer done()
			l.end(bounded, s.unit, true)
		}
		return statusOf(sig), nil
	}
}

// statusOf is what a shell makes of the end by a signal.
func statusOf(sig os.Signal) int {
	if s, ok := sig.(syscall.Signal); ok {
		return 128 + int(s)
	}
	return 1
}

// start brings the job's files to the lab and starts it.
func (l *lab) start(ctx context.Context, j job) (dir, unit, pid string, err error) {
	if err := l.meet(ctx); err != nil {
		return "", "", "", err
	}
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	unit = "lab-exec-" + hex.EncodeToString(b[:])
	dir = "/var/tmp/" + unit
	if _, err := l.askWith(ctx, j.pack, unpackScript, dir); err != nil {
		return "", "", "", fmt.Errorf("cannot bring %s to the lab: %w", filepath.Base(j.program), err)
	}
	pid, err = l.ask(ctx, startScript, dir, unit)
	if err != nil {
		return dir, unit, "", fmt.Errorf("cannot start %s in the lab: %w", filepath.Base(j.program), err)
	}
	return dir, unit, pid, nil
}

// attend passes on the output of the running job, and signals to it.
func (l *lab) attend(ctx context.Context, j job, dir, unit, pid string, signals <-chan os.Signal) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	followed := make(chan error, 2)
	for name, w := range map[string]io.Writer{"out": j.stdout, "err": j.stderr} {
		go func() { followed <- l.follow(ctx, dir+"/"+name, pid, w) }()
	}
	var sent os.Signal
	var ending sync.WaitGroup
	for streams := 2; streams > 0; {
		select {
		case err := <-followed:
			streams--
			if err != nil {
				cancel(err)
				return 1, err
			}
		case sig := <-signals:
			hard := sent != nil // asked twice
			sent = sig
			ending.Go(func() { l.end(ctx, unit, hard) })
		}
	}
	ending.Wait()
	if sent != nil {
		_, err := l.ask(ctx, endScript, dir)
		return statusOf(sent), err
	}
	said, err := l.ask(ctx, endScript, dir)
	if err != nil {
		return 1, err
	}
	status, err := strconv.Atoi(said)
	if err != nil {
		return 1, fmt.Errorf("%s was killed in the lab", filepath.Base(j.program))
	}
	return status, nil
}

// gentle is how long a job may take to end when it is interrupted.
const gentle = 20 * time.Second

// end interrupts a job and kills it if it does not heed that.
func (l *lab) end(ctx context.Context, unit string, hard bool) {
	script := `systemctl kill --signal=INT "$1"; n=0; while systemctl --quiet is-active "$1" && [ $n -lt "$2" ]; do sleep 1; n=$((n+1)); done; systemctl kill --signal=KILL "$1"; :`
	if hard {
		script = `systemctl kill --signal=KILL "$1"; :`
	}
	own := *l
	own.log = io.Discard // a unit that is gone already
	if _, err := own.ask(ctx, script, unit, strconv.Itoa(int(gentle/time.Second))); err != nil {
		fmt.Fprintln(l.log, "labexec: cannot end the program in the lab:", err)
	}
}

// follow copies a file of the lab to w as it grows, until the process has ended.
func (l *lab) follow(ctx context.Context, file, pid string, w io.Writer) error {
	out := &counter{w: w}
	status, err := l.run(ctx, session{script: followScript, stdout: out,
		args: func() []string { return []string{file, pid, strconv.FormatInt(out.n+1, 10)} }})
	switch {
	case err != nil:
		return err
	case out.err != nil:
		return out.err
	case status != 0:
		return fmt.Errorf("cannot read %s in the lab: status %d", file, status)
	}
	return nil
}

// counter counts what came, so that the next connection begins behind it.
type counter struct {
	w   io.Writer
	n   int64
	err error
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.err = err
	return n, err
}

// pack returns the job's files as a tar. Packed at the least effort: the way
// into an emulated machine is slow, and so is its processor.
func (j job) pack() (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() {
		z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err == nil {
			t := tar.NewWriter(z)
			if err = j.packInto(t); err == nil { // else it must not look complete
				err = errors.Join(t.Close(), z.Close())
			}
		}
		_ = w.CloseWithError(err)
	}()
	return r, nil
}

func (j job) packInto(t *tar.Writer) error {
	if err := packFile(t, j.program, filepath.Base(j.program)); err != nil {
		return err
	}
	service := j.service()
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: serviceFile, Mode: 0o600, Size: int64(len(service))}); err != nil {
		return err
	}
	if _, err := io.WriteString(t, service); err != nil {
		return err
	}
	err := filepath.WalkDir("testdata", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return packFile(t, path, path)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func packFile(t *tar.Writer, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size()}
	if err := t.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}
