//go:build e2e && hostile

package hostile

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/helper"
	"banger/internal/paths"
)

// raceTime is how long each argument is raced for.
const raceTime = time.Second

// swapper exchanges what has a name with one thing after another.
func swapper(t *testing.T, name string, with ...string) (stop func() int) {
	t.Helper()
	quit := make(chan struct{})
	var task sync.WaitGroup
	n := 0
	task.Go(func() {
		for ; ; n++ {
			select {
			case <-quit:
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, with[n%len(with)], unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("cannot swap: %v", err)
				return
			}
		}
	})
	return func() int { close(quit); task.Wait(); return n }
}

// swaps changes a path of each verb while the verb is at work, and checks that
// what was used is the owner's: by content, and by size.
func (a *attacker) swaps(t *testing.T) {
	dir := paths.StateDir + "/" + ownerDir
	race := dir + "/race"
	mine := map[string]bool{}
	for _, name := range []string{"leaf", "plain"} {
		writeSized(t, race+"/"+name, goodSize, 0o600)
		raw, err := os.ReadFile(race + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(raw)
		mine[hex.EncodeToString(sum[:])] = true
	}
	for name, to := range map[string]string{"out": foreignDir + "/leaf", "in": "plain", "shadow": "/etc/shadow"} {
		if err := os.Symlink(to, race+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(race+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(race+"/dir", 0o700); err != nil {
		t.Fatal(err)
	}
	// The leaf, and then a directory in the middle; hard and root are root's files.
	leaves := []string{race + "/out", race + "/in", race + "/fifo", race + "/dir", race + "/shadow", dir + "/hard", dir + "/root", race + "/plain"}
	for where, swap := range map[string]struct {
		name string
		with []string
	}{
		"leaf":   {race + "/leaf", leaves},
		"middle": {race, []string{dir + "/foreign", dir + "/dirlink", dir + "/up"}},
	} {
		for _, field := range []string{"path", "base", "overlay", "work"} {
			stop := swapper(t, swap.name, swap.with...)
			tally := map[int]int{}
			for end := time.Now().Add(raceTime); time.Now().Before(end); {
				if field == "path" {
					tally[a.racePut(t, mine)]++
				} else {
					tally[a.raceAttach(t, field)]++
				}
			}
			n := stop()
			if n < len(swap.with) {
				t.Errorf("%s of %s: %d swaps only", where, field, n)
			}
			for n%len(swap.with) != 0 || !isMine(swap.name) { // as it was
				if err := unix.Renameat2(unix.AT_FDCWD, swap.name, unix.AT_FDCWD, swap.with[n%len(swap.with)], unix.RENAME_EXCHANGE); err != nil {
					t.Fatal(err)
				}
				n++
			}
			t.Logf("%s of %s: %d swaps, answers %v", where, field, n, tally)
		}
	}
	a.resize(t, dir)
}

// isMine reports whether the name has what it had at first.
func isMine(name string) bool {
	var st unix.Stat_t
	if unix.Lstat(name, &st) != nil || int(st.Uid) != os.Getuid() {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFREG || st.Mode&unix.S_IFMT == unix.S_IFDIR && filepath.Base(name) == "race"
}

func (a *attacker) racePut(t *testing.T, mine map[string]bool) int {
	t.Helper()
	status, answer := a.call(t, "blob.put", body{"path": ownerDir + "/race/leaf"})
	var b helper.Blob
	if status == http.StatusOK && (json.Unmarshal(answer, &b) != nil || !mine[b.SHA256]) {
		t.Errorf("a file of somebody else was stored: %s", answer)
	}
	if status >= 500 {
		t.Errorf("blob.put: %d %s", status, answer)
	}
	return status
}

func (a *attacker) raceAttach(t *testing.T, field string) int {
	t.Helper()
	status, answer := a.call(t, "vm.attach", requests["vm.attach"].with(field, ownerDir+"/race/leaf"))
	switch {
	case status == http.StatusOK:
		wantMine(t, answer)
		a.done(t, "vm.cleanup", requests["vm.cleanup"])
	case status >= 500:
		t.Errorf("vm.attach with another %s: %d %s", field, status, answer)
	}
	return status
}

// wantMine checks the loop devices below the disks by their size.
func wantMine(t *testing.T, answer []byte) {
	t.Helper()
	var out helper.Attached
	if err := json.Unmarshal(answer, &out); err != nil || out.Work == nil {
		t.Fatalf("%s: %v", answer, err)
	}
	for _, d := range []helper.Disk{out.Root, *out.Work} {
		loops, err := filepath.Glob(fmt.Sprintf("/sys/dev/block/%d:%d/slaves/*", d.Major, d.Minor))
		if err != nil || len(loops) == 0 {
			t.Errorf("disk %s lies on nothing: %v", d.Name, err)
		}
		for _, loop := range loops {
			size, err := os.ReadFile(loop + "/size")
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(string(size)); got != strconv.Itoa(goodSize/512) {
				file, _ := os.ReadFile(loop + "/loop/backing_file")
				t.Errorf("disk %s lies on %s of %s sectors: %s", d.Name, filepath.Base(loop), got, file)
			}
		}
	}
}

// resize makes files shorter and longer while disks are made of them.
func (a *attacker) resize(t *testing.T, dir string) {
	quit := make(chan struct{})
	var task sync.WaitGroup
	task.Go(func() {
		sizes := []int64{0, 4097, 4096, goodSize, 1 << 40, 8 << 20, 512}
		for n := 0; ; n++ {
			select {
			case <-quit:
				return
			default:
			}
			for _, name := range []string{"good", "over", "work"} {
				if err := os.Truncate(dir+"/"+name, sizes[n%len(sizes)]); err != nil {
					t.Error(err)
				}
			}
		}
	})
	tally := map[string]int{}
	for end := time.Now().Add(raceTime); time.Now().Before(end); {
		for _, verb := range []string{"vm.attach", "vm.grow", "vm.cleanup"} {
			status, answer := a.call(t, verb, requests[verb])
			tally[fmt.Sprintf("%s %d", verb, status)]++
			if verb == "vm.cleanup" && status != http.StatusOK || status == 0 {
				t.Errorf("%s: %d %s", verb, status, answer)
			}
		}
	}
	close(quit)
	task.Wait()
	for _, name := range []string{"good", "over", "work"} {
		if err := os.Truncate(dir+"/"+name, goodSize); err != nil {
			t.Error(err)
		}
	}
	t.Logf("resized: %v", tally)
}

// fuzzSeed makes the requests the same in each run.
const (
	fuzzSeed     = 0x68657931
	fuzzRequests = 400
)

// fuzz sends requests made of what fields there are and of what was wrong in
// them above, some with bytes changed. None of them names another VM.
func (a *attacker) fuzz(t *testing.T) {
	t.Logf("seed %#x", fuzzSeed)
	r := rand.New(rand.NewPCG(fuzzSeed, 0))
	verbs := []string{"vm.reserve", "vm.release", "vm.attach", "vm.grow", "vm.fsck", "vm.launch", "vm.handover", "vm.kill", "vm.cleanup", "blob.put", "blob.gc", "bridge.ensure", "network.apply", "host.check"}
	ids := []any{ownerA, ownerA, ownerB, ownerB, ownerUnknown, ownerForeign, ownerDummy}
	files := []any{ownerDir + "/good", ownerDir + "/over", ownerDir + "/work", ownerDir + "/twice", ownerDir + "/root"}
	fields := map[string][]any{
		"id": slices.Concat(ids, ids, badIDs), "base": slices.Concat(files, files, badPaths), "overlay": slices.Concat(files, files, badPaths),
		"work": slices.Concat(files, badPaths), "path": slices.Concat(files, badPaths), "disk": {"root", "work", "x", 1}, "repair": {true, false, 1},
		"kernel": {sha, "", "x"}, "initrd": {sha, 1}, "vcpu": {1, 2, 0, -1, 1e9}, "memory_mib": {128, 0, -1, 1e18}, "keep": {[]any{}, []any{sha}, nil, "x"},
		"guests": {[]any{body{"id": ownerA}}, []any{body{"id": ownerB, "group": "g", "nat": true}}, []any{1}, nil}, "whole": {false, 1},
	}
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	tally := map[string]int{}
	var made []helper.ReserveRequest
	for range fuzzRequests {
		verb := verbs[r.IntN(len(verbs))]
		in := body{}
		for name := range requests[verb] {
			in[name] = fields[name][r.IntN(len(fields[name]))]
		}
		if len(in) == 0 || r.IntN(4) == 0 {
			name := names[r.IntN(len(names))]
			in[name] = fields[name][r.IntN(len(fields[name]))]
		}
		raw := []byte(shown(in))
		if r.IntN(4) == 0 {
			for range 1 + r.IntN(3) {
				raw[r.IntN(len(raw))] ^= 1 << r.IntN(8)
			}
		}
		status, answer := a.raw(t, verb, raw)
		var reserved helper.ReserveRequest // of an id that a changed byte made
		if verb == "vm.reserve" && status == http.StatusOK && json.Unmarshal(raw, &reserved) == nil {
			made = append(made, reserved)
		}
		tally[fmt.Sprintf("%dxx", status/100)]++
		if status >= 500 && !foreignStays(answer) || status == 0 {
			t.Errorf("%s %.200q: %d %.300s", verb, raw, status, answer)
		}
	}
	t.Logf("answers: %v", tally)
	for _, r := range made {
		a.call(t, "vm.release", r) // that of somebody else's things is refused
	}
}

// foreignStays is what the helper says of things that it did not make.
func foreignStays(answer []byte) bool {
	s := string(answer)
	return strings.Contains(s, "not made by banger") || strings.Contains(s, "not removed")
}
