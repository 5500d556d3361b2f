package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/guest"
	"banger/internal/helper"
	"banger/internal/paths"
	"banger/internal/store"
)

// Disks makes files that hold the filesystem of a work disk.
type Disks interface {
	// Create makes an empty ext4 of that many bytes, sparse, whole or not at all.
	Create(ctx context.Context, path string, bytes int64) error
	// Grow makes the file larger; the filesystem in it follows in the guest.
	Grow(path string, bytes int64) error
}

// workDisk is a VM's second drive. It is mounted at /root, filled once from
// what the image has there, and outlives the root disk.
type workDisk struct {
	noHooks
	m *Manager
}

func (workDisk) name() string { return "work disk" }

// workPath is relative to the state directory.
func workPath(id string) string { return filepath.Join("vms", id, "work.ext4") }

func (w workDisk) file(id string) string { return filepath.Join(w.m.StateDir, workPath(id)) }

func (w workDisk) contribute(r *startRun, m *machine) error {
	if r.vm.DiskBytes == 0 {
		return nil
	}
	m.drives = append(m.drives, firecracker.Drive{ID: "work", Path: paths.JailWork, Cache: "Writeback"})
	m.guest.Mounts = append(m.guest.Mounts, guest.Mount{Device: "/dev/vdb", FSType: "ext4", Path: "/root", Fill: true, Grow: true})
	return nil
}

// prepareHost makes the file with the first start and the device with every.
func (w workDisk) prepareHost(ctx context.Context, r *startRun) error {
	if r.vm.DiskBytes == 0 {
		return nil
	}
	file := w.file(r.vm.ID)
	st, err := os.Stat(file)
	fresh := errors.Is(err, fs.ErrNotExist)
	switch {
	case fresh:
		err = w.m.Disks.Create(ctx, file, r.vm.DiskBytes)
	case err == nil && st.Size() < r.vm.DiskBytes:
		err = w.m.Disks.Grow(file, r.vm.DiskBytes)
	}
	if err != nil {
		return err
	}
	if _, err := w.m.Helper.Attach(ctx, helper.AttachRequest{ID: r.vm.ID, Base: r.base, Overlay: r.overlay, Work: workPath(r.vm.ID)}); err != nil {
		return err
	}
	if fresh {
		return nil
	}
	return r.fsck(ctx, "work")
}

// applyChange grows the disk, also under a VM that runs. A disk that is added
// comes with the next start.
func (w workDisk) applyChange(ctx context.Context, old, now *store.VM) ([]string, error) {
	switch {
	case old.DiskBytes == now.DiskBytes:
		return nil, nil
	case now.DiskBytes < old.DiskBytes:
		return nil, api.BadRequest("a work disk cannot become smaller: it has %d bytes", old.DiskBytes)
	case old.DiskBytes == 0:
		return []string{"disk"}, nil
	}
	if _, err := os.Stat(w.file(now.ID)); errors.Is(err, fs.ErrNotExist) { // added, and not started since
		return []string{"disk"}, nil
	}
	if err := w.m.Disks.Grow(w.file(now.ID), now.DiskBytes); err != nil {
		return nil, err
	}
	if _, err := w.m.Helper.Grow(ctx, now.ID); err != nil {
		return nil, err
	}
	err := w.m.askVMM(ctx, now, func(c *firecracker.Client, ctx context.Context) error {
		return c.UpdateDrive(ctx, "work", paths.JailWork)
	})
	if err != nil {
		return nil, fmt.Errorf("the disk has grown, but its VM was not told: %w", err)
	}
	return w.growInGuest(ctx, now)
}

// growInGuest lets the agent enlarge the filesystem. Where that fails, the next
// start does it.
func (w workDisk) growInGuest(ctx context.Context, v *store.VM) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	agent := jailOf(v.ID, v.UID).agent()
	defer agent.Close()
	if err := agent.Grow(ctx, "/root"); err != nil {
		w.m.Log.WarnContext(ctx, "the guest did not grow its filesystem", "vm", v.ID, "error", err)
		return []string{"disk"}, nil
	}
	return nil, nil
}
