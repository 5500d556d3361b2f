package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/helper"
)

// checkTree says what others than root could change in the helper's own places.
func (p Places) checkTree() (err error) {
	for _, d := range p.directories() {
		err = errors.Join(err, checkOwn(d.path, unix.S_IFDIR, d.mode))
	}
	entries, readErr := os.ReadDir(p.Blobs)
	err = errors.Join(err, readErr)
	for _, e := range entries {
		if isSHA256(e.Name()) {
			err = errors.Join(err, checkOwn(filepath.Join(p.Blobs, e.Name()), unix.S_IFREG, 0o444))
		}
	}
	if slots := checkOwn(p.Slots, unix.S_IFREG, 0o600); !errors.Is(slots, fs.ErrNotExist) {
		err = errors.Join(err, slots)
	}
	return err
}

func checkOwn(path string, kind uint32, mode os.FileMode) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("cannot stat %s: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != kind:
		return fmt.Errorf("%s is of another kind", path)
	case st.Uid != uint32(os.Geteuid()):
		return fmt.Errorf("%s belongs to uid %d", path, st.Uid)
	case os.FileMode(st.Mode&0o7777) != mode:
		return fmt.Errorf("%s has mode %04o, not %04o", path, st.Mode&0o7777, mode)
	}
	return nil
}

// lookAround tells jails from what has no business where they are.
func (p Places) lookAround() (foreign, jails []string, err error) {
	top := filepath.Dir(p.Slots)
	for dir, known := range map[string]func(name string) bool{
		top: func(name string) bool {
			return slices.Contains([]string{filepath.Base(p.Slots), filepath.Base(filepath.Dir(p.Jails)), filepath.Base(filepath.Dir(p.Blobs))}, name)
		},
		filepath.Dir(p.Blobs): func(name string) bool { return name == filepath.Base(p.Blobs) },
		filepath.Dir(p.Jails): func(name string) bool { return name == filepath.Base(p.Jails) },
		p.Blobs:               isSHA256,
		p.Jails:               isID,
	} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, nil, fmt.Errorf("cannot look at %s: %w", dir, err)
		}
		for _, e := range entries {
			switch {
			case strings.HasPrefix(e.Name(), newFile): // being written
			case !known(e.Name()):
				foreign = append(foreign, filepath.Join(dir, e.Name()))
			case dir == p.Jails:
				jails = append(jails, e.Name())
			}
		}
	}
	slices.Sort(foreign)
	return foreign, jails, nil
}

// vmCgroups is where systemd keeps the VMs' units, by Slice=banger.slice.
const vmCgroups = "/sys/fs/cgroup/banger.slice"

// confinement asks the kernel how each VM's processes are confined.
func (s *Server) confinement(ids []string) (out []helper.VMM, err error) {
	for _, id := range ids {
		raw, err := os.ReadFile(filepath.Join(vmCgroups, unitName(id), "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // it does not run
		}
		if err != nil {
			return nil, fmt.Errorf("cannot look at the processes of VM %s: %w", id, err)
		}
		slot, err := s.slots.lookup(id)
		if err != nil {
			out = append(out, helper.VMM{ID: id, Weak: err.Error()})
			continue
		}
		v := helper.VMM{ID: id}
		for pid := range strings.FieldsSeq(string(raw)) {
			status, err := readProcess(pid)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue // ended meanwhile
			}
			if err != nil {
				return nil, fmt.Errorf("cannot look at a process of VM %s: %w", id, err)
			}
			if weak := weakness(status, slot.UID); status != "" && weak != "" {
				v.Weak = weak
			}
		}
		out = append(out, v)
	}
	return out, nil
}

// readProcess returns /proc/PID/status; nothing for a thread of the kernel, of
// which KVM puts one into the cgroup of each VMM.
func readProcess(pid string) (string, error) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil || isKernelThread(string(stat)) {
		return "", err
	}
	status, err := os.ReadFile("/proc/" + pid + "/status")
	return string(status), err
}

// isKernelThread reads /proc/PID/stat, in which a process chooses its own name,
// the part in parentheses, but not its flags.
func isKernelThread(stat string) bool {
	const flags, kernelThread = 6, 0x00200000 // PF_KTHREAD of the kernel's sched.h
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= flags {
		return false
	}
	n, err := strconv.ParseUint(fields[flags], 10, 64)
	return err == nil && n&kernelThread != 0
}

// weakness reads /proc/PID/status: what the process of a VM has and should not.
func weakness(status string, uid int) string {
	number := strconv.Itoa(uid)
	ids := strings.Join([]string{number, number, number, number}, "\t")
	want := map[string]string{"Uid": ids, "Gid": ids, "Groups": "", "NoNewPrivs": "1", "Seccomp": "2"}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		want[set] = "0000000000000000"
	}
	var weak []string
	for line := range strings.SplitSeq(status, "\n") {
		key, value, _ := strings.Cut(line, ":")
		if w, ok := want[key]; ok {
			delete(want, key)
			if value = strings.TrimSpace(value); value != w {
				weak = append(weak, fmt.Sprintf("%s is %.80q", key, value))
			}
		}
	}
	for key := range want { // a kernel that does not tell is one that does not have it
		weak = append(weak, key+" is not told")
	}
	slices.Sort(weak)
	return strings.Join(weak, ", ")
}
