package server

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"banger/internal/helper"
)

const confinedStatus = "Name:\tfirecracker\nUid:\t200007\t200007\t200007\t200007\nGid:\t200007\t200007\t200007\t200007\nGroups:\t \n" +
	"CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t00000000002405cb\nCapAmb:\t0000000000000000\n" +
	"NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n"

func TestWeakness(t *testing.T) {
	if got := weakness(confinedStatus, 200007); got != "" {
		t.Errorf("a confined process: %q", got)
	}
	for change, want := range map[[2]string]string{
		{"Uid:\t200007\t200007", "Uid:\t200007\t0"}:                "Uid",
		{"Groups:\t ", "Groups:\t4 27"}:                            "Groups",
		{"CapEff:\t0000000000000000", "CapEff:\t0000000000200000"}: "CapEff",
		{"NoNewPrivs:\t1", "NoNewPrivs:\t0"}:                       "NoNewPrivs",
		{"Seccomp:\t2", "Seccomp:\t0"}:                             "Seccomp is",
		{"Seccomp:\t2\n", ""}:                                      "Seccomp is not told",
		{"Gid:\t200007\t200007", "Gid:\t200008\t200007"}:           "Gid",
		{"CapAmb:\t0000000000000000", "CapAmb:\t0000000000000001"}: "CapAmb",
	} {
		status := strings.Replace(confinedStatus, change[0], change[1], 1)
		if got := weakness(status, 200007); !strings.Contains(got, want) || strings.Contains(got, ",") {
			t.Errorf("%q: %q", change[1], got)
		}
	}
	if got := weakness(confinedStatus, 200008); !strings.Contains(got, "Uid") {
		t.Errorf("another VM's uid: %q", got)
	}
}

func TestTree(t *testing.T) {
	sum := strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		spoil func(p Places) error
		want  string
	}{
		"as it is made":   {func(Places) error { return nil }, ""},
		"open jails":      {func(p Places) error { return os.Chmod(p.Jails, 0o777) }, "mode 0777"},
		"writable blob":   {func(p Places) error { return os.WriteFile(filepath.Join(p.Blobs, sum), nil, 0o644) }, "mode 0644"},
		"blob is a link":  {func(p Places) error { return os.Symlink("/etc/passwd", filepath.Join(p.Blobs, sum)) }, "another kind"},
		"readable slots":  {func(p Places) error { return os.WriteFile(p.Slots, nil, 0o644) }, "mode 0644"},
		"no exit records": {func(p Places) error { return os.Remove(p.Exit) }, "cannot stat"},
	} {
		s, _ := testServer(t)
		if err := c.spoil(s.places); err != nil {
			t.Fatal(err)
		}
		if got := words(s.places.checkTree()); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestLookAround(t *testing.T) {
	s, _ := testServer(t)
	top := filepath.Dir(s.places.Slots)
	if _, err := s.slots.reserve(idB); err != nil { // writes the registry
		t.Fatal(err)
	}
	for _, dir := range []string{s.places.jail(idA), s.places.jail("someone"), filepath.Join(top, "extra"), filepath.Join(s.places.Blobs, "notes")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	foreign, jails, err := s.places.lookAround()
	want := []string{filepath.Join(s.places.Blobs, "notes"), filepath.Join(top, "extra"), s.places.jail("someone")}
	if err != nil || !slices.Equal(foreign, want) || !slices.Equal(jails, []string{idA}) {
		t.Errorf("foreign %q, jails %q, %v", foreign, jails, err)
	}
	ids, err := s.slots.ids()
	if err != nil || !slices.Equal(ids, []string{idB}) {
		t.Errorf("slots %q, %v", ids, err)
	}
}

func TestConfinementOfWhatDoesNotRun(t *testing.T) {
	s, _ := testServer(t)
	got, err := s.confinement(t.Context(), []string{idA})
	if err != nil || len(got) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// The test's own process stands for one that is not confined.
func TestConfinementOfWhatEnds(t *testing.T) {
	s, u := testServer(t)
	if _, err := s.slots.reserve(idA); err != nil {
		t.Fatal(err)
	}
	s.cgroups = t.TempDir()
	unit := filepath.Join(s.cgroups, unitName(idA))
	if err := os.Mkdir(unit, 0o700); err != nil {
		t.Fatal(err)
	}
	look := func(p phase, pids ...string) []helper.VMM {
		t.Helper()
		u.set(idA, p)
		if err := os.WriteFile(filepath.Join(unit, "cgroup.procs"), []byte(strings.Join(pids, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := s.confinement(t.Context(), []string{idA})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	const gone = "4194305" // above the highest pid there can be
	self := strconv.Itoa(os.Getpid())
	if got := look(unitRunning, gone, self); len(got) != 1 || !strings.Contains(got[0].Weak, "Uid") {
		t.Errorf("a weak process: %+v", got)
	}
	if got := look(unitRunning, gone); len(got) != 1 || got[0].Weak != "" {
		t.Errorf("a process that is gone: %+v", got)
	}
	for _, p := range []phase{unitGone, unitEnded, unitStarting, unitEnding} {
		if got := look(p, self); len(got) != 0 {
			t.Errorf("a unit of phase %v: %+v", p, got)
		}
	}
	if err := s.slots.release(idA); err != nil {
		t.Fatal(err)
	}
	if got := look(unitRunning, self); len(got) != 1 || got[0].Weak == "" {
		t.Errorf("a VM without a slot: %+v", got)
	}
}

func TestKernelThreadsAreTold(t *testing.T) {
	for stat, want := range map[string]bool{
		"813 (kvm-nx-lpage-re) S 2 0 0 0 -1 2129984 0 0":               true,
		"814 (firecracker) S 1 814 814 0 -1 4194560 0 0":               false,
		"814 (a) S 2 0 0 0 -1 2129984 0 0) S 1 814 814 0 -1 4194560 0": false,
		"814 (cut": false, "": false, "814 (x) S 1 2 3 4 5 many": false,
	} {
		if got := isKernelThread(stat); got != want {
			t.Errorf("%q: %v", stat, got)
		}
	}
}
