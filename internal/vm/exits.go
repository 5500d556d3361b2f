package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
	"banger/internal/helper"
)

// exitWatch tells of VMMs that ended, by watching the directory in which
// systemd's verdicts are left (see helper.Exit). Unlike a subscription to
// systemd this needs no renewal after daemon-reexec and loses nothing while
// bangerd is down.
type exitWatch struct {
	dir    string
	file   *os.File
	onExit func(helper.Exit)
	done   chan struct{}

	mu      sync.Mutex
	waiting map[string][]waiter // guarded by mu
}

type waiter struct {
	ch      chan helper.Exit
	earlier int64 // UnixNano of a verdict that is not meant
}

func watchExits(dir string, onExit func(helper.Exit)) (*exitWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch %s: %w", dir, err)
	}
	w := &exitWatch{dir: dir, file: os.NewFile(uintptr(fd), "inotify"), onExit: onExit,
		done: make(chan struct{}), waiting: map[string][]waiter{}}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot watch %s: %w", dir, err), w.file.Close())
	}
	go w.run()
	return w, nil
}

func (w *exitWatch) close() error {
	err := w.file.Close()
	<-w.done
	return err
}

// wait returns a channel that gets the next verdict on the VM, and a function
// that ends the waiting.
func (w *exitWatch) wait(id string) (<-chan helper.Exit, func()) { return w.waitBehind(id, 0) }

// waitForNew is wait for a VM that is started now: the verdict on its earlier run
// is there already, and may not have been told yet.
func (w *exitWatch) waitForNew(id string) (<-chan helper.Exit, func()) {
	old, err := readExit(w.dir, id)
	if err != nil { // none, or one that nobody can read
		return w.waitBehind(id, 0)
	}
	return w.waitBehind(id, old.UnixNano)
}

func (w *exitWatch) waitBehind(id string, earlier int64) (<-chan helper.Exit, func()) {
	ch := make(chan helper.Exit, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[id] = append(w.waiting[id], waiter{ch, earlier})
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		kept := w.waiting[id][:0]
		for _, c := range w.waiting[id] {
			if c.ch != ch {
				kept = append(kept, c)
			}
		}
		if w.waiting[id] = kept; len(kept) == 0 {
			delete(w.waiting, id)
		}
	}
}

func (w *exitWatch) run() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil { // closed
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			nameLen := int(uint32(b[12]) | uint32(b[13])<<8 | uint32(b[14])<<16 | uint32(b[15])<<24)
			end := unix.SizeofInotifyEvent + nameLen
			if id, ok := strings.CutSuffix(strings.TrimRight(string(b[unix.SizeofInotifyEvent:end]), "\x00"), ".json"); ok && guest.ValidID(id) {
				w.tell(id)
			}
			b = b[end:]
		}
	}
}

func (w *exitWatch) tell(id string) {
	e, err := readExit(w.dir, id)
	if errors.Is(err, fs.ErrNotExist) {
		return // of an earlier run: vm.launch has removed it
	}
	if err != nil {
		// Still an end, only without words: whoever waits must not wait for ever.
		e = helper.Exit{ID: id, Result: "unknown"}
	}
	w.mu.Lock()
	for _, c := range w.waiting[id] {
		if e.UnixNano != 0 && e.UnixNano == c.earlier {
			continue
		}
		select {
		case c.ch <- e:
		default: // it already has one
		}
	}
	w.mu.Unlock()
	w.onExit(e)
}

// readExit reads the verdict on a VM; fs.ErrNotExist if there is none.
func readExit(dir, id string) (helper.Exit, error) {
	f, err := os.Open(filepath.Join(dir, id+".json"))
	if err != nil {
		return helper.Exit{}, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return helper.Exit{}, err
	}
	var e helper.Exit
	if err := json.Unmarshal(raw, &e); err != nil {
		return helper.Exit{}, fmt.Errorf("cannot read exit record of %s: %w", id, err)
	}
	return e, nil
}

// describe says for a person how a VMM ended.
func describe(e helper.Exit) string {
	switch {
	case e.Result == "oom-kill":
		return "firecracker was killed because its memory limit was reached"
	case e.Status == "SYS":
		return "firecracker was killed for a system call that its unit's filter does not hold (SystemCallFilter in banger-vm-.service.d)"
	case e.ExitCode == "killed" || e.ExitCode == "dumped":
		return "firecracker was killed by signal " + e.Status
	case e.ExitCode == "exited" && e.Status == "0":
		return "the guest ended by itself"
	case e.ExitCode == "exited":
		return "firecracker exited with status " + e.Status + statusMeaning[e.Status]
	case e.ExitCode == "": // it never came to Firecracker
		return fmt.Sprintf("the jailer failed (systemd says %q)", e.Result)
	}
	return fmt.Sprintf("firecracker ended (systemd says %q)", e.Result)
}

// statusMeaning explains Firecracker's exit statuses.
var statusMeaning = map[string]string{
	"1": " (a general failure, see its log)", "2": " (an unexpected failure, see its log)",
	"148": " (a system call its filter forbids)", "149": " (bus error)", "150": " (segmentation fault)",
	"151": " (file size limit)", "152": " (bad configuration)", "153": " (bad arguments)",
}
