package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/fault"
	"banger/internal/helper"
	"banger/internal/paths"
)

// What a check may take, whatever the guest wrote on its disk.
const (
	fsckTime   = 30 * time.Minute
	fsckMemory = 1 << 30
	fsckTasks  = 16 // threads of this program before it turns into e2fsck
	fsckOutput = 64 << 10
)

// fsckRoot is where the check's unit sees the jail, and in it the disk.
const fsckRoot = "/disk"

// fsck lets e2fsck look at a disk of a VM that does not run. What a guest wrote
// is parsed by no process with rights: e2fsck runs as the VM's uid in a unit of
// its own, which sees this disk and the programs of the host, and nothing else.
//
// The unit uses the VM's jail. As long as it exists, so that another helper may
// still find the unit at work, no VM is launched, see endCheck.
func (s *Server) fsck(ctx context.Context, r helper.FsckRequest) (out helper.Checked, err error) {
	slot, leave, err := s.hold(ctx, r.ID)
	if err != nil {
		return out, err
	}
	defer leave()
	if err := s.requireOver(ctx, r.ID); err != nil {
		return out, err
	}
	if err := s.places.takesJails(); err != nil {
		return out, err
	}
	d, err := checkable(r)
	if err != nil {
		return out, err
	}
	jail := s.places.jail(r.ID)
	if err := s.places.locked(r.ID, func() error { return s.places.newJail(r.ID) }); err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.undoCheck(context.WithoutCancel(ctx), r.ID)) }()
	if err := makeNode(jail+d.jailPath, slot.UID, d); err != nil {
		return out, err
	}
	if err := fault.Point(ctx, "fsck.jail"); err != nil {
		return out, err
	}
	return s.check(ctx, r, slot.UID, d)
}

// checkable returns the disk that is to be checked.
func checkable(r helper.FsckRequest) (device, error) {
	want := rootDisk(r.ID)
	switch r.Disk {
	case "root":
	case "work":
		want = workDisk(r.ID)
	default:
		return device{}, api.BadRequest("%.40q is no disk: want root or work", r.Disk)
	}
	if e2fsck() == "" {
		return device{}, api.Problemf(http.StatusPreconditionFailed, api.CodePrerequisite, "the program e2fsck is missing").
			WithHint("install the package e2fsprogs")
	}
	disks, err := attached(r.ID)
	if err != nil {
		return device{}, err
	}
	i := slices.IndexFunc(disks, func(d device) bool { return d.disk == want })
	if i < 0 {
		return device{}, api.Conflict("VM %s has no work disk", r.ID).WithHint("call vm.attach first")
	}
	return disks[i], nil
}

func (s *Server) check(ctx context.Context, r helper.FsckRequest, uid int, d device) (out helper.Checked, err error) {
	how := "preen"
	if r.Repair {
		how = "repair"
	}
	argv := []string{paths.LibexecDir + "/banger-helper", "fsck", strconv.Itoa(uid), how, fsckRoot + d.jailPath}
	jail := bindMount{s.places.jail(r.ID), fsckRoot, false, 0}
	v, said, err := runToEnd(ctx, s.checks, r.ID, argv, fsckTime,
		set("Description", "banger check of disk "+d.name()),
		set("BindReadOnlyPaths", []bindMount{jail}),
		set("MemoryMax", uint64(fsckMemory)),
		set("TasksMax", uint64(fsckTasks)),
		allow(d))
	if err != nil {
		return out, fmt.Errorf("cannot check disk %s: %w", d.name(), err)
	}
	return judge(d.disk, v, said)
}

// runToEnd runs a program in a unit that stays loaded when it has ended, well or badly,
// so that its verdict can be read: a unit that is gone tells nothing. The caller
// forgets it. What is returned beside the verdict is what the program said.
func runToEnd(ctx context.Context, u checkUnits, id string, argv []string, most time.Duration, settings ...property) (v verdict, said string, err error) {
	output, err := newOutput()
	if err != nil {
		return v, "", err
	}
	defer output.Close()
	w, err := u.watch(ctx, id)
	if err != nil {
		return v, "", err
	}
	defer w.close()
	if err := u.start(ctx, id, append(settings,
		set("Type", "oneshot"),
		set("RemainAfterExit", true),
		set("ExecStart", []execCommand{{argv[0], argv, false}}),
		set("StandardOutputFileDescriptor", dbus.UnixFD(output.Fd())),
		set("StandardErrorFileDescriptor", dbus.UnixFD(output.Fd())),
		set("TimeoutStartUSec", uint64(most/time.Microsecond)))); err != nil {
		return v, "", err
	}
	if err := fault.Point(ctx, "fsck.started"); err != nil {
		return v, "", err
	}
	p, err := w.await(ctx, func(p phase) bool { return p == unitRunning || p.over() }, nil)
	if err == nil && p == unitGone {
		err = errors.New("somebody stopped its unit")
	}
	if err != nil {
		return v, "", err
	}
	if v, err = u.verdict(ctx, id); err != nil {
		return v, "", err
	}
	said, err = readOutput(output)
	return v, said, err
}

// newOutput makes a file in memory that takes so much and no more: what a program
// says beyond that is lost, and nobody has to read along.
func newOutput() (*os.File, error) {
	fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file for output: %w", err)
	}
	f := os.NewFile(uintptr(fd), "output")
	err = f.Truncate(fsckOutput)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make a file for output: %w", err), f.Close())
	}
	return f, nil
}

// readOutput returns what is fit to be read by a person.
func readOutput(f *os.File) (string, error) {
	raw := make([]byte, fsckOutput)
	if _, err := f.ReadAt(raw, 0); err != nil {
		return "", fmt.Errorf("cannot read what a program said: %w", err)
	}
	return lastLines(string(raw)), nil
}

// lastLines are the last lines of a text, without control characters.
func lastLines(text string) string {
	const lines, length = 20, 2000
	text = strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	all := strings.Split(strings.TrimSpace(text), "\n")
	text = strings.Join(all[max(0, len(all)-lines):], "\n")
	return strings.ToValidUTF8(text[max(0, len(text)-length):], "")
}

// exited is waitid's CLD_EXITED.
const exited = 1

// judge tells e2fsck's verdict: 0 is clean, 1 is mended. 2 would ask for the
// reboot of a host that has the filesystem mounted, which it never has; with 4
// errors are left, with 8 there is nothing it could work on. What lies above
// is no word on the disk: e2fsck did not get to work or was ended.
func judge(d disk, v verdict, said string) (helper.Checked, error) {
	switch {
	case v.Code != exited:
		return helper.Checked{}, api.Problemf(http.StatusUnprocessableEntity, helper.CodeUnchecked,
			"cannot check disk %s: e2fsck was ended (%s): %s", d.name(), v.Result, said).WithHint("%s", endedHint(v.Result))
	case v.Status == FsckShared:
		return helper.Checked{}, api.Problemf(http.StatusUnprocessableEntity, helper.CodeUnchecked,
			"cannot check disk %s: its filesystem is marked for several hosts (mmp), for which e2fsck would wait", d.name()).
			WithHint("`tune2fs -O ^mmp` takes the mark off a work disk's file; for a root disk, import an image without it")
	case v.Status > 15:
		return helper.Checked{}, fmt.Errorf("cannot check disk %s: e2fsck did not run (status %d): %s", d.name(), v.Status, said)
	case v.Status > 1:
		return helper.Checked{}, api.Problemf(http.StatusUnprocessableEntity, helper.CodeDamaged,
			"disk %s is damaged (e2fsck status %d): %s", d.name(), v.Status, said)
	}
	return helper.Checked{Status: int(v.Status), Output: said}, nil
}

func endedHint(result string) string {
	if result == "timeout" || result == "oom-kill" {
		return "with what is on that disk it takes longer, or more memory, than it may: put a copy in its place, or delete the VM"
	}
	return "start the VM again; if it stays so, see `journalctl --namespace=banger -u 'banger-fsck-*'`"
}

// endCheck ends a unit of vm.fsck, at work or not.
func (s *Server) endCheck(ctx context.Context, id string) error {
	if _, err := os.Lstat(s.places.jail(id)); errors.Is(err, fs.ErrNotExist) {
		return nil // no jail, no unit
	}
	if err := stopUnit(ctx, s.checks, id); err != nil {
		return err
	}
	return s.checks.forget(ctx, id)
}

// undoCheck keeps the jail while the unit may be at work.
func (s *Server) undoCheck(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	if err := s.endCheck(ctx, id); err != nil {
		return err
	}
	return s.places.locked(id, func() error { return s.places.removeJail(id) })
}

func e2fsck() string {
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/sbin"} {
		path := filepath.Join(dir, "e2fsck")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// Exit statuses of Fsck when it did not become e2fsck, whose own end at 15.
const (
	FsckFailed = 16
	FsckShared = 17
)

// ErrShared is what Fsck refuses: a filesystem that says that several hosts may use it
// (MMP). e2fsck would wait for the others as long as that says.
var ErrShared = errors.New("the filesystem is marked for several hosts (mmp)")

// Fsck is what `banger-helper fsck UID preen|repair NODE` does in the unit that
// vm.fsck starts: it gives up all rights and turns into e2fsck. It returns only
// if that fails.
//
// preen mends what cannot cost a file and gives up otherwise; repair says yes
// to everything.
func Fsck(uid, how, node string) error {
	id, err := strconv.ParseUint(uid, 10, 31)
	if err != nil || id == 0 {
		return fmt.Errorf("%q is no uid of a VM", uid)
	}
	argv := []string{"e2fsck", "-p", node}
	switch how {
	case "preen":
	case "repair":
		argv = []string{"e2fsck", "-f", "-y", node}
	default:
		return fmt.Errorf("%q is neither preen nor repair", how)
	}
	// The groups first, while there is the right to change them. With the uid
	// go the capabilities.
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(int(id), int(id), int(id)), syscall.Setresuid(int(id), int(id), int(id))); err != nil {
		return fmt.Errorf("cannot become uid %d: %w", id, err)
	}
	if err := refuseShared(node); err != nil {
		return err
	}
	program := e2fsck()
	if program == "" {
		return errors.New("e2fsck is missing")
	}
	err = syscall.Exec(program, argv, []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "E2FSCK_CONFIG=/dev/null"})
	return fmt.Errorf("cannot run %s: %w", program, err)
}

func refuseShared(node string) error {
	// Of the superblock, see the kernel's Documentation/filesystems/ext4/super.rst.
	const start, magicAt, magic, featuresAt, mmp = 1024, 0x38, 0xef53, 0x60, 0x100
	f, err := os.Open(node)
	if err != nil {
		return err
	}
	defer f.Close()
	var super [1024]byte
	if _, err := f.ReadAt(super[:], start); err != nil {
		return fmt.Errorf("cannot read its superblock: %w", err)
	}
	if binary.LittleEndian.Uint16(super[magicAt:]) == magic && binary.LittleEndian.Uint32(super[featuresAt:])&mmp != 0 {
		return ErrShared
	}
	return nil // what is no filesystem is e2fsck's to tell
}
