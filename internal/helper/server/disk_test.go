package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
)

func TestDiskNames(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range slices.Concat(disksOf(idA), disksOf(idB)) {
		for _, s := range []string{d.name(), d.uuid()} {
			if seen[s] || !strings.HasSuffix(s, d.id) {
				t.Errorf("%q", s)
			}
			seen[s] = true
		}
	}
	if !seen["fc-rootfs-"+idA] || !seen["fc-work-"+idA] {
		t.Errorf("%v", seen)
	}
}

func TestAnotherDiskIsBusy(t *testing.T) {
	r := recipe{rootDisk(idA), make([]layer, 2), "snapshot", "P 8"}
	good := dmStatus{uuid: r.uuid(), active: true, targets: []dmTarget{{8, "snapshot", "7:0 7:1 P 8"}}}
	if err := r.check(good); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*dmStatus){
		"foreign":     func(s *dmStatus) { s.uuid = "LVM-x" },
		"another VM":  func(s *dmStatus) { s.uuid = rootDisk(idB).uuid() },
		"work disk":   func(s *dmStatus) { s.uuid = workDisk(idA).uuid() },
		"inactive":    func(s *dmStatus) { s.active = false },
		"suspended":   func(s *dmStatus) { s.suspended = true },
		"no table":    func(s *dmStatus) { s.targets = nil },
		"two targets": func(s *dmStatus) { s.targets = append(s.targets, s.targets...) },
		"linear":      func(s *dmStatus) { s.targets = []dmTarget{{8, "linear", "7:0 0"}} },
		"transient":   func(s *dmStatus) { s.targets = []dmTarget{{8, "snapshot", "7:0 7:1 N 8"}} },
		"cut off":     func(s *dmStatus) { s.targets = []dmTarget{{8, "snapshot", "7:0"}} },
		"nothing":     func(s *dmStatus) { s.targets = []dmTarget{{}} },
	} {
		st := good
		change(&st)
		err := r.check(st)
		if err == nil {
			err = r.compare(device{r.disk, st})
		}
		if problem(err) != helper.CodeBusy {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLayers(t *testing.T) {
	s, _ := testServer(t)
	const dir, base = "vms/" + idA + "/", "images/" + idB + "/rootfs.ext4"
	for name, size := range map[string]int64{base: 8 << 20, dir + "overlay": 9 << 20, dir + "work": 1 << 20, dir + "odd": 5000, "work": 1 << 20} {
		must(t, os.MkdirAll(filepath.Join(s.places.State, filepath.Dir(name)), 0o700))
		f, err := os.OpenFile(filepath.Join(s.places.State, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			err = errors.Join(f.Truncate(size), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		base, overlay, work string
		layers              int
		code                string
	}{
		{base, dir + "overlay", "", 2, ""},
		{base, dir + "overlay", dir + "work", 3, ""},
		{base, base, "", 2, api.CodeBadRequest},
		{base, dir + "overlay", base, 3, api.CodeBadRequest},
		{base, dir + "overlay", dir + "overlay", 3, api.CodeBadRequest},
		{dir + "odd", dir + "overlay", "", 1, api.CodeBadRequest},
		{base, dir + "overlay", dir + "odd", 3, api.CodeBadRequest},
		{base, dir + "overlay", dir + "../work", 2, api.CodeBadRequest},
		{base, dir + "overlay", "work", 2, api.CodeBadRequest}, // udev would have it looked into
		{base, dir + "overlay", "images/" + idB + "/work", 2, api.CodeBadRequest},
		{base, dir + "none", dir + "work", 1, api.CodeNotFound},
		{"", dir + "overlay", dir + "work", 0, api.CodeBadRequest},
	} {
		got, err := s.layers(helper.AttachRequest{ID: idA, Base: tt.base, Overlay: tt.overlay, Work: tt.work})
		if problem(err) != tt.code || len(got) != tt.layers {
			t.Errorf("%+v: %d layers, %v", tt, len(got), err)
		}
		for i, l := range got {
			mode, fcntlErr := unix.FcntlInt(l.f.Fd(), unix.F_GETFL, 0)
			if fcntlErr != nil || (mode&unix.O_ACCMODE == unix.O_RDONLY) != (i == 0) {
				t.Errorf("%+v: layer %d is open with %#x, %v", tt, i, mode, fcntlErr)
			}
			if err := l.f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestOverlayOfOtherChunksIsRefused(t *testing.T) {
	header := func(magic, chunk uint32) *bytes.Reader {
		head := binary.LittleEndian.AppendUint32(nil, magic)
		head = binary.LittleEndian.AppendUint32(head, 1)
		head = binary.LittleEndian.AppendUint32(head, 1)
		return bytes.NewReader(append(binary.LittleEndian.AppendUint32(head, chunk), make([]byte, 4080)...))
	}
	for _, tt := range []struct {
		magic, chunk uint32
		code         string
	}{{0, 0, ""}, {snapMagic, chunkSectors, ""}, {snapMagic, 1 << 21, helper.CodeDamaged}, {snapMagic, 0, helper.CodeDamaged}} {
		if err := checkOverlay("overlay.cow", header(tt.magic, tt.chunk)); problem(err) != tt.code {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

func TestSharedFilesystemIsRefused(t *testing.T) {
	node := filepath.Join(t.TempDir(), "disk")
	super := make([]byte, 2048)
	for _, tt := range []struct {
		magic    uint16
		features uint32
		refused  bool
	}{{0xef53, 0x2, false}, {0xef53, 0x102, true}, {0, 0xffffffff, false}} { // garbage is damage
		binary.LittleEndian.PutUint16(super[1024+0x38:], tt.magic)
		binary.LittleEndian.PutUint32(super[1024+0x60:], tt.features)
		write(t, node, string(super))
		if err := refuseShared(node); errors.Is(err, ErrShared) != tt.refused || !tt.refused && err != nil {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	write(t, node, "short")
	if err := refuseShared(node); err == nil {
		t.Error("a disk without a superblock passes")
	}
}

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		v      verdict
		status int
		code   string
	}{
		{verdict{"success", exited, 0}, 0, ""},
		{verdict{"exit-code", exited, 1}, 1, ""},
		{verdict{"exit-code", exited, 2}, 0, helper.CodeDamaged},
		{verdict{"exit-code", exited, 4}, 0, helper.CodeDamaged},
		{verdict{"exit-code", exited, 12}, 0, helper.CodeDamaged},
		{verdict{"exit-code", exited, 16}, 0, "no problem"},
		{verdict{"exit-code", exited, 226}, 0, "no problem"},
		{verdict{"signal", 2, 9}, 0, helper.CodeUnchecked},
		{verdict{"timeout", 2, 9}, 0, helper.CodeUnchecked},
		{verdict{"oom-kill", 2, 9}, 0, helper.CodeUnchecked},
		{verdict{"signal", 2, 1}, 0, helper.CodeUnchecked}, // SIGHUP is not "mended"
		{verdict{}, 0, helper.CodeUnchecked},               // never ran
	} {
		got, err := judge(rootDisk(idA), tt.v, "words")
		if code, _, _ := strings.Cut(problem(err), ":"); code != tt.code || got.Status != tt.status {
			t.Errorf("%+v: %+v, %v", tt.v, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), "words") {
			t.Errorf("%+v: %v", tt.v, err)
		}
	}
}

func TestOutputIsBoundedAndPlain(t *testing.T) {
	f, err := newOutput()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("first\n\x1b]0;title\a/disk/rootfs: \x00recovering\r\njournal \xff\u202e\n"); err != nil {
		t.Fatal(err)
	}
	got, err := readOutput(f)
	if want := "first\n]0;title/disk/rootfs: recovering\njournal ?"; err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	for err == nil {
		_, err = f.WriteString(strings.Repeat("ä", 1000) + "\n")
	}
	if info, statErr := f.Stat(); statErr != nil || info.Size() != fsckOutput {
		t.Errorf("%v, %v", info, statErr)
	}
	if err := f.Truncate(fsckOutput * 2); err == nil {
		t.Error("it can be made larger")
	}
	if got, err = readOutput(f); err != nil || len(got) > 2000 || strings.Contains(got, "\ufffd") {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestFsckRefuses(t *testing.T) {
	s, u := testServer(t)
	if _, err := s.slots.reserve(idA); err != nil {
		t.Fatal(err)
	}
	before := tree(t, s)
	if _, err := s.fsck(t.Context(), helper.FsckRequest{ID: idB, Disk: "root"}); problem(err) != api.CodeNotFound {
		t.Errorf("without a slot: %v", err)
	}
	if _, err := s.fsck(t.Context(), helper.FsckRequest{ID: idA, Disk: "/dev/sda"}); problem(err) != api.CodeBadRequest {
		t.Errorf("another disk: %v", err)
	}
	for _, p := range []phase{unitStarting, unitRunning} {
		u.set(idA, p)
		if _, err := s.fsck(t.Context(), helper.FsckRequest{ID: idA, Disk: "root"}); problem(err) != api.CodeConflict {
			t.Errorf("while the VM runs: %v", err)
		}
	}
	if after := tree(t, s); after != before {
		t.Errorf("there is now\n%s", after)
	}
}

// A check that an earlier helper started holds the disk: it is ended before the
// jail goes, which keeps the VM from being launched.
func TestCleanupEndsACheck(t *testing.T) {
	s, _ := testServer(t)
	checks := newFakeUnits()
	s.checks = checks
	jail := s.places.jail(idA)
	for _, p := range []phase{unitStarting, unitRunning, unitEnded} { // at work, done, failed
		if err := s.places.newJail(idA); err != nil {
			t.Fatal(err)
		}
		checks.set(idA, p)
		checks.onStop = func(id string) {
			if _, err := os.Stat(jail); err != nil {
				t.Error(err)
			}
			checks.set(id, unitEnded)
		}
		if err := s.endCheck(t.Context(), idA); err != nil {
			t.Error(err)
		}
		if p, _ := checks.phase(t.Context(), idA); p != unitGone {
			t.Errorf("phase %v", p)
		}
		if err := s.places.newJail(idA); !errors.Is(err, errJailExists) {
			t.Error(err)
		}
		if _, err := s.cleanup(t.Context(), helper.VMRequest{ID: idA}); err != nil {
			t.Error(err)
		}
	}
	checks.set(idA, unitRunning)
	checks.onStop = nil
	if err := s.places.newJail(idA); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	checks.onStop = func(string) {} // does not end
	if _, err := s.cleanup(ctx, helper.VMRequest{ID: idA}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := os.Stat(jail); err != nil {
		t.Errorf("the jail went before the unit: %v", err)
	}
}

// Becoming e2fsck is refused for whoever is nobody's VM, before anything runs.
func TestFsckArguments(t *testing.T) {
	for _, tt := range []struct{ uid, how string }{
		{"0", "preen"}, {"-1", "preen"}, {"", "preen"}, {"4294967295", "preen"}, {"4294967296", "preen"}, {"+1", "preen"}, {"1000", "-p"},
	} {
		if err := Fsck(tt.uid, tt.how, "/nowhere"); err == nil || !strings.Contains(err.Error(), "is n") {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
