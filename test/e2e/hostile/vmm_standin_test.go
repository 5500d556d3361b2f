//go:build e2e

package hostile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/paths"
)

// This test binary, installed in place of Firecracker, is a hostile VMM: what a
// guest would have in its hands that broke out of Firecracker and got round its
// filter. It answers as much of the API as bangerd needs to go on, and does what
// the test asks it to, at the same socket.

// plan is what it does before the helper takes its jail away. It stands behind
// the end of the program.
type plan struct{ At, Do string }

// When it acts.
const (
	atStart  = "start"  // in place of listening
	atVsock  = "vsock"  // at the last call before vm.handover
	atAnswer = "answer" // to the first call that changes something
)

const planMark = "\nBANGER-HOSTILE-PLAN "

func init() {
	if filepath.Base(os.Args[0]) != "firecracker" {
		return
	}
	err := beVMM()
	fmt.Println("the hostile VMM ends:", err)
	os.Exit(1)
}

// maxPlan is how much of the program's end is looked at: all of it takes seconds in
// an emulated lab, in which a launch has thirty.
const maxPlan = 512

func readPlan() (p plan, err error) {
	f, err := os.Open("/firecracker")
	if err != nil {
		return p, err
	}
	defer f.Close()
	if _, err := f.Seek(-maxPlan, io.SeekEnd); err != nil {
		return p, err
	}
	raw, err := io.ReadAll(f)
	if err != nil {
		return p, err
	}
	if i := strings.LastIndex(string(raw), planMark); i >= 0 {
		err = json.Unmarshal(raw[i+len(planMark):], &p)
	}
	return p, err
}

func beVMM() error {
	if name := os.Getenv(attemptEnv); name != "" {
		return attemptMain(name)
	}
	p, err := readPlan()
	if err != nil {
		return err
	}
	if p.At == atStart {
		if err := misbehave(p.Do); err != nil {
			return err
		}
		for { // a program that waits for nothing is ended by its runtime
			time.Sleep(time.Hour)
		}
	}
	l, err := net.Listen("unix", paths.JailAPI)
	if err != nil {
		return err
	}
	return http.Serve(l, vmmAPI(p)) //nolint:gosec // no timeouts: it is a test's
}

func vmmAPI(p plan) http.Handler {
	var running atomic.Bool
	var disks []*os.File
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		state := "Not started"
		if running.Load() {
			state = "Running"
		}
		answer(w, map[string]string{"id": "x", "state": state, "vmm_version": "1.12.1", "app_name": "Firecracker"})
	})
	mux.HandleFunc("PUT /machine-config", func(w http.ResponseWriter, _ *http.Request) {
		if p.At == atAnswer {
			misanswer(w, p.Do)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("PUT /drives/{id}", func(w http.ResponseWriter, r *http.Request) {
		f, err := os.OpenFile("/"+r.PathValue("id"), os.O_RDWR, 0)
		disks = append(disks, f) // as Firecracker keeps them
		refuse(w, err)
	})
	mux.HandleFunc("PUT /vsock", func(w http.ResponseWriter, _ *http.Request) {
		_, err := net.Listen("unix", paths.JailVsock)
		if err == nil && p.At == atVsock {
			err = misbehave(p.Do)
		}
		refuse(w, err)
	})
	mux.HandleFunc("PUT /actions", func(w http.ResponseWriter, _ *http.Request) {
		running.Store(true)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /attempts", func(w http.ResponseWriter, r *http.Request) {
		var known facts
		if err := json.NewDecoder(r.Body).Decode(&known); err != nil {
			refuse(w, err)
			return
		}
		all, err := tryAll(known)
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, all)
	})
	mux.HandleFunc("POST /bomb/{kind}", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, bomb(r.PathValue("kind")))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	return mux
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, err error) {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	answer(w, map[string]string{"fault_message": err.Error()})
}

// misbehave is what a VMM can try while the jail's directories are its own.
func misbehave(what string) error {
	const bangerd, helper = "/run/banger/bangerd.sock", paths.HelperSocket
	api := paths.JailAPI
	switch what {
	case "link the helper's socket":
		return errors.Join(remove(api), os.Symlink(helper, api))
	case "link bangerd's socket":
		return errors.Join(remove(api), os.Symlink(bangerd, api))
	case "link run to the host's":
		return errors.Join(os.Rename("/run", "/old"), os.Symlink("/run/banger-helper", "/run"))
	case "kernel as api.sock":
		return errors.Join(remove(api), os.Rename(paths.JailKernel, api))
	case "kernel as vsock.sock":
		return errors.Join(remove(paths.JailVsock), os.Rename(paths.JailKernel, paths.JailVsock))
	case "vsock.sock with two names":
		return os.Link(paths.JailVsock, "/run/other")
	case "a thousand files":
		for i := range 1000 {
			if err := os.WriteFile(fmt.Sprint("/run/", i), nil, 0o600); err != nil {
				return err
			}
		}
		return nil
	case "swap":
		go swap()
		return nil
	}
	return fmt.Errorf("%q is unknown", what)
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// swap exchanges, as fast as it can, what the helper looks at: run with a link
// out of the jail, the socket with the kernel.
func swap() {
	if err := os.Symlink("/run/banger-helper", "/away"); err != nil {
		fmt.Println("the hostile VMM cannot swap:", err)
		return
	}
	done := 0
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		for _, pair := range [][2]string{{"/run", "/away"}, {"/run", "/away"}, {paths.JailVsock, paths.JailKernel}, {paths.JailVsock, paths.JailKernel}} {
			if unix.Renameat2(unix.AT_FDCWD, pair[0], unix.AT_FDCWD, pair[1], unix.RENAME_EXCHANGE) == nil {
				done++
			}
		}
		if done > 0 && done <= 4 {
			fmt.Println(swapping)
		}
	}
}

// swapping is said when the first swap was made: a test that shows nothing would
// else look like one in which nothing happened.
const swapping = "the hostile VMM swaps"
