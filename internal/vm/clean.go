package vm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"banger/internal/store"
)

// cleanEnds remembers how the disks of VMs lay when their guests had ended them
// in order. Such disks need no check before the next start, as long as nobody has
// touched them. It is kept in memory only: bangerd's next start checks once more.
type cleanEnds struct {
	mu    sync.Mutex
	disks map[string][]stamp // by the VM's id
}

// stamp changes with every write to a file.
type stamp struct {
	inode, size         uint64
	modified, attribute syscall.Timespec
}

func stampOf(path string) (stamp, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return stamp{}, nil // no such disk, then and now
	}
	if err != nil {
		return stamp{}, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}, errors.ErrUnsupported
	}
	return stamp{sys.Ino, uint64(sys.Size), sys.Mtim, sys.Ctim}, nil
}

func (m *Manager) diskStamps(v *store.VM) ([]stamp, error) {
	root, rootErr := stampOf(filepath.Join(m.dir(v), "overlay.cow"))
	work, workErr := stampOf(workDisk{m: m}.file(v.ID))
	return []stamp{root, work}, errors.Join(rootErr, workErr)
}

// noteCleanEnd is for a VM whose VMM has just ended, because its guest was asked
// to end, agreed, and knew of no error of a filesystem.
func (m *Manager) noteCleanEnd(v *store.VM) {
	disks, err := m.diskStamps(v)
	if err != nil {
		return // they will be checked
	}
	m.clean.mu.Lock()
	defer m.clean.mu.Unlock()
	if m.clean.disks == nil {
		m.clean.disks = map[string][]stamp{}
	}
	m.clean.disks[v.ID] = disks
}

// endedClean tells whether the VM's last end is one that was noted, the VMM was
// not killed on the way, and the disks are as they were then.
func (m *Manager) endedClean(v *store.VM) bool {
	m.clean.mu.Lock()
	then, noted := m.clean.disks[v.ID]
	m.clean.mu.Unlock()
	if !noted {
		return false
	}
	e, err := readExit(m.ExitDir, v.ID)
	if err != nil || e.Result != "success" || e.Status != "0" {
		return false
	}
	now, err := m.diskStamps(v)
	return err == nil && slices.Equal(then, now)
}

// forgetCleanEnd is for a VM whose disks are written to again, or are gone.
func (m *Manager) forgetCleanEnd(id string) {
	m.clean.mu.Lock()
	defer m.clean.mu.Unlock()
	delete(m.clean.disks, id)
}
