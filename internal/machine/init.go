package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"banger/api"
	"banger/internal/version"
)

// InitOptions says what a new machine is made of. The zero value is fine.
type InitOptions struct {
	// Binaries is the directory that holds banger, bangerd, banger-helper,
	// banger-agent, firecracker and jailer. "" means the directory of the
	// running program, then the place where an installed banger keeps them.
	Binaries string
	// CPUs and MemoryMiB are the machine's size; 0 means a share of the host's, and
	// one CPU where the machine is emulated.
	CPUs      int
	MemoryMiB int
	// NoImage leaves the default image out.
	NoImage bool
	// Disposable trades what the machine has written, should the host crash,
	// for speed.
	Disposable bool
}

const recordFile = "machine.json"

// record is machine.json.
type record struct {
	CreatedAt  time.Time `json:"created_at"`
	CPUs       int       `json:"cpus,omitempty"` // 0: as many as are good, see cpus
	MemoryMiB  int       `json:"memory_mib"`
	Disposable bool      `json:"disposable,omitempty"`
	// Version and Binaries (a hash) are of the banger installed in it.
	Version  string `json:"version"`
	Binaries string `json:"binaries"`
	// GuestKernel is the sha256 of banger's own guest kernel in it; "" if the
	// machine has only its distribution's.
	GuestKernel string `json:"guest_kernel,omitempty"`
}

func (m *Machine) readRecord() (record, error) {
	var r record
	text, err := os.ReadFile(m.path(recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return r, api.NotFound("there is no machine %q", m.Name).WithHint("make it: banger machine init %s", m.Name)
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return r, fmt.Errorf("cannot read the record of machine %q: %w", m.Name, err)
	}
	return r, nil
}

// Init makes the machine if it does not exist, gives it the banger of
// o.Binaries if it has another one, and leaves it running. Everything costly
// is cached. The machine appears whole or not at all.
func (m *Machine) Init(ctx context.Context, o InitOptions, p Progress) error {
	bins, err := findBinaries(o.Binaries)
	if err != nil {
		return err
	}
	c, err := openCache()
	if err != nil {
		return err
	}
	own, err := c.guestKernel()
	if err != nil {
		return err
	}
	if err := requireTools(qemu, "qemu-img", "ssh"); err != nil {
		return err
	}
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	exists, err := m.Exists()
	if err != nil {
		return err
	}
	if exists {
		err = m.keepsSize(o)
	} else if err = m.create(ctx, c, o, bins, own, p); err != nil {
		err = fmt.Errorf("cannot make machine %q: %w", m.Name, err)
	}
	if err != nil {
		return err
	}
	if err := m.start(ctx, p); err != nil {
		return err
	}
	return m.update(ctx, bins, own, p)
}

// keepsSize refuses what would need another machine than the one there is.
func (m *Machine) keepsSize(o InitOptions) error {
	r, err := m.readRecord()
	if err != nil {
		return err
	}
	for _, c := range []struct {
		differs bool
		problem *api.Problem
	}{
		{o.CPUs != 0 && o.CPUs != r.CPUs, api.Conflict("machine %q exists and was not made with %d CPUs", m.Name, o.CPUs)},
		{o.MemoryMiB != 0 && o.MemoryMiB != r.MemoryMiB, api.Conflict("machine %q exists and has %d MiB of memory, not %d", m.Name, r.MemoryMiB, o.MemoryMiB)},
		{o.Disposable && !r.Disposable, api.Conflict("machine %q exists and is not disposable", m.Name)},
	} {
		if c.differs {
			return c.problem.WithHint("make another (banger machine init NAME), or remove this one with all that is in it: banger machine rm %s", m.Name)
		}
	}
	return nil
}

// create builds the machine's directory beside its place and moves it there.
func (m *Machine) create(ctx context.Context, c cache, o InitOptions, bins binaries, own guestKernel, p Progress) error {
	r, err := o.record(bins)
	if err != nil {
		return err
	}
	r.GuestKernel = own.hash
	installed, err := c.installed(ctx, bins, own, !o.NoImage, r.guest("", ""), p)
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(m.Dir), "."+m.Name+".new")
	removeTree(tmp) // of a command that was killed: we have the lock
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	defer removeTree(tmp)
	for _, name := range []string{baseDisk, installedDisk, kernelFile, initrdFile} {
		if err := linkOrCopy(ctx, filepath.Join(installed, name), filepath.Join(tmp, name)); err != nil {
			return err
		}
	}
	if err := newDisk(ctx, tmp, ownDisk, installedDisk, "qcow2"); err != nil {
		return err
	}
	if err := writeKeys(ctx, tmp); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(tmp, recordFile), r); err != nil {
		return err
	}
	return os.Rename(tmp, m.Dir)
}

// record turns the options into the machine's record.
func (o InitOptions) record(bins binaries) (record, error) {
	r := record{CreatedAt: time.Now().UTC().Truncate(time.Second), CPUs: o.CPUs, MemoryMiB: o.MemoryMiB,
		Disposable: o.Disposable, Version: version.Version, Binaries: bins.hash}
	if r.MemoryMiB == 0 {
		total, err := hostMemoryMiB()
		if err != nil {
			return record{}, err
		}
		r.MemoryMiB = min(max(total/2, minMemoryMiB), 6144)
	}
	switch {
	case r.CPUs < 0 || r.CPUs > runtime.NumCPU():
		return record{}, api.BadRequest("a machine cannot have %d CPUs here", r.CPUs).WithHint("this host has %d", runtime.NumCPU())
	case r.MemoryMiB < minMemoryMiB:
		return record{}, api.BadRequest("a machine cannot work in %d MiB", r.MemoryMiB).WithHint("give it at least %d", minMemoryMiB)
	}
	return r, nil
}

// minMemoryMiB leaves room for Debian, banger and one small microVM.
const minMemoryMiB = 1536

func hostMemoryMiB() (int, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return kib / 1024, err
		}
	}
	return 0, errors.New("cannot find MemTotal in /proc/meminfo")
}

// cpus is how many CPUs the machine gets. With two or more emulated ones QEMU
// (7.2 and 10.0 were tried) lets an interrupt that one CPU sends another through
// where SVM has them masked: now and then a guest dies of it, or its host.
func (r record) cpus(accel string) int {
	switch {
	case r.CPUs != 0:
		return r.CPUs
	case accel == accelTCG:
		return 1
	}
	return min(runtime.NumCPU(), 8)
}

func (r record) guest(dir, accel string) guest {
	return guest{dir: dir, disk: ownDisk, cpus: r.cpus(accel), memoryMiB: r.MemoryMiB, accel: accel, disposable: r.Disposable}
}

// newDisk makes dir/name, a disk over dir/backing. The name of what is below
// is stored relative, so both can move together.
func newDisk(ctx context.Context, dir, name, backing, format string) error {
	err := runTool(ctx, command{dir: dir, argv: []string{"qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", backing, name}})
	if err != nil {
		return fmt.Errorf("cannot make the machine's disk: %w", err)
	}
	return nil
}
