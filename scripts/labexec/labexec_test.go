package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// localLab is a lab that is this host; wrap may break a connection.
func localLab(t *testing.T, log io.Writer, wrap func(attempt int, argv []string) []string) *lab {
	t.Helper()
	var attempts atomic.Int32
	return &lab{patience: 5 * time.Second, pause: time.Millisecond, connecting: time.Minute, log: log,
		running: func() (bool, error) { return true, nil },
		command: func(ctx context.Context, _ bool, argv ...string) *exec.Cmd {
			if wrap != nil {
				argv = wrap(int(attempts.Add(1)), argv)
			}
			return exec.CommandContext(ctx, argv[0], argv[1:]...)
		}}
}

// broken is a connection that passes n bytes on and then is no more.
func broken(n int, argv []string) []string {
	return append([]string{"sh", "-c", `n=$1; shift; "$@" | head -c "$n"; exit 255`, "sh", fmt.Sprint(n)}, argv...)
}

func TestFollowGoesOnWhereTheConnectionBroke(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out")
	writer := exec.CommandContext(t.Context(), "sh", "-c", `for i in 1 2 3 4 5 6 7 8 9; do echo "line $i"; sleep 0.05; done >"$1"; sleep 0.1; echo the end >>"$1"`, "sh", file)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = writer.Wait() }() // a zombie would be a process to tail
	var log, got bytes.Buffer
	l := localLab(t, &log, func(attempt int, argv []string) []string {
		switch attempt {
		case 1:
			return broken(10, argv)
		case 2:
			return []string{"sh", "-c", "exit 255"}
		case 3:
			return broken(7, argv)
		}
		return argv
	})
	if err := l.follow(t.Context(), file, fmt.Sprint(writer.Process.Pid), &got); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(file)
	if err != nil || got.String() != string(want) || !strings.HasSuffix(got.String(), "the end\n") {
		t.Errorf("got %q, want %q", &got, want)
	}
	if n := strings.Count(log.String(), "broke"); n != 3 {
		t.Errorf("%d connections broke, the log has %q", n, &log)
	}
}

func TestDeadLabs(t *testing.T) {
	none := func(int, []string) []string { return []string{"sh", "-c", "exit 255"} }
	for reason, prepare := range map[string]func() *lab{
		"QEMU has ended": func() *lab {
			l := localLab(t, io.Discard, none)
			l.running = func() (bool, error) { return false, nil }
			return l
		},
		"booted again": func() *lab {
			l := localLab(t, io.Discard, nil)
			l.boot = "another"
			return l
		},
		"nothing has answered": func() *lab {
			l := localLab(t, io.Discard, none)
			l.patience = 20 * time.Millisecond
			return l
		},
	} {
		_, err := prepare().ask(t.Context(), "true")
		if dead, ok := errors.AsType[*diedError](err); !ok || !strings.Contains(dead.reason, reason) {
			t.Errorf("got %v, want %q", err, reason)
		}
	}
}

func TestAskIsForTheSameBootOnly(t *testing.T) {
	l := localLab(t, io.Discard, nil)
	if err := l.meet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := l.ask(t.Context(), `echo "$# $1"`, "a  b", "c"); err != nil || got != "2 a  b" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := l.ask(t.Context(), "exit 3"); err == nil || !strings.Contains(err.Error(), "3") {
		t.Errorf("got %v", err)
	}
}

func TestJobRunsAsPacked(t *testing.T) {
	here := t.TempDir()
	t.Chdir(here)
	t.Setenv("FAULTS", "it's some")
	program := filepath.Join(here, "it's a program")
	script := "#!/bin/sh\ncat testdata/deep/file; printf '%s|' \"$@\" \"$FAULTS\"; echo problem >&2; kill -s INT $PPID; exit 7\n"
	if err := errors.Join(os.WriteFile(program, []byte(script), 0o755), os.MkdirAll("testdata/deep", 0o755),
		os.WriteFile("testdata/deep/file", []byte("content\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	j := job{program: program, args: []string{"-test.run=^A$", "$HOME 'x' %n $$", ""}}
	dir := filepath.Join(t.TempDir(), "there")
	l := localLab(t, io.Discard, func(attempt int, argv []string) []string {
		if attempt == 1 { // half an upload
			return []string{"sh", "-c", "head -c 100 >/dev/null; exit 255"}
		}
		return argv
	})
	if _, err := l.askWith(t.Context(), j.pack, unpackScript, dir); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "sh", filepath.Join(dir, serviceFile)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range map[string]string{"out": "content\n-test.run=^A$|$HOME 'x' %n $$||it's some|", "err": "problem\n", "status": "7\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	if said, err := l.ask(t.Context(), endScript, dir); err != nil || said != "7" {
		t.Errorf("got %q, %v", said, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestPackTellsOfFilesItCannotRead(t *testing.T) {
	t.Chdir(t.TempDir())
	r, err := job{program: "absent"}.pack()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestAutopsyReadsProcesses(t *testing.T) {
	if state, sum, err := ticks(os.Getpid()); err != nil || state == "" || sum < 0 {
		t.Errorf("got %q, %d, %v", state, sum, err)
	}
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("first\r\nsecond\x1b[0m\nthird\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := lastLines(path, 2); got != "second[0m\nthird" {
		t.Errorf("got %q", got)
	}
}
