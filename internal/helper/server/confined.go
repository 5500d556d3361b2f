package server

import (
	"context"
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
		if !isSHA256(e.Name()) {
			continue
		}
		if blob := checkOwn(filepath.Join(p.Blobs, e.Name()), unix.S_IFREG, 0o444); !errors.Is(blob, fs.ErrNotExist) { // removed meanwhile
			err = errors.Join(err, blob)
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

// confinement asks the kernel how each VM's processes are confined.
func (s *Server) confinement(ctx context.Context, ids []string) (out []helper.VMM, err error) {
	for _, id := range ids {
		v, runs, err := s.confined(ctx, id)
		if err != nil {
			return nil, err
		}
		if runs {
			out = append(out, v)
		}
	}
	return out, nil
}

// confined looks at one VM. Of one that ends the clean-up, which is root's, is
// in the same cgroup: what looks weak counts only if the unit still runs then,
// and the process is still there and weak after that.
func (s *Server) confined(ctx context.Context, id string) (v helper.VMM, runs bool, err error) {
	v.ID = id
	weak, runs, err := s.weakProcesses(id)
	if err != nil || !runs || len(weak) == 0 {
		return v, runs, err
	}
	if p, err := s.units.phase(ctx, id); err != nil || p != unitRunning {
		return v, false, err
	}
	again, runs, err := s.weakProcesses(id)
	for pid, text := range again {
		if weak[pid] != "" {
			v.Weak = text
		}
	}
	return v, runs, err
}

// weakProcesses says, by pid, what is weak of a VM's processes; and whether it
// has a unit at all.
func (s *Server) weakProcesses(id string) (weak map[string]string, runs bool, err error) {
	raw, err := os.ReadFile(filepath.Join(s.cgroups, unitName(id), "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("cannot look at the processes of VM %s: %w", id, err)
	}
	weak = map[string]string{}
	slot, err := s.slots.lookup(id)
	for pid := range strings.FieldsSeq(string(raw)) {
		if err != nil { // nobody's uid: none is right
			weak[pid] = err.Error()
			continue
		}
		status, err := readProcess(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // ended meanwhile
		}
		if err != nil {
			return nil, false, fmt.Errorf("cannot look at a process of VM %s: %w", id, err)
		}
		if text := weakness(status, slot.UID); status != "" && text != "" {
			weak[pid] = text
		}
	}
	return weak, true, nil
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
