package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/kernel"
	"banger/internal/store"
)

// Blobs takes files for use in jails.
type Blobs interface {
	// PutBlob stores a copy of a file, named relative to the state directory.
	PutBlob(ctx context.Context, path string) (helper.Blob, error)
	// GCBlobs removes the blobs that are not in keep and in no jail.
	GCBlobs(ctx context.Context, keep []string) error
}

// dirName is where the catalog lies in the state directory.
const dirName = "kernels"

// Kernels keeps the guest kernels of an installation. Each has an initrd with
// the agent, which is built again when the agent changes.
type Kernels struct {
	store *store.Store
	shelf shelf
	agent string
	blobs Blobs
	log   *slog.Logger

	agentHash func() (string, error)
	build     sync.Mutex // one initrd at a time
}

// OpenKernels returns those in stateDir/kernels, swept of what unfinished
// imports left. agent is the path of banger-agent.
func OpenKernels(ctx context.Context, s *store.Store, stateDir, agent string, reserve int64, blobs Blobs, log *slog.Logger) (*Kernels, error) {
	c := &Kernels{store: s, agent: agent, blobs: blobs, log: log,
		shelf:     shelf{Dir: filepath.Join(stateDir, dirName), Kind: "kernel", Reserve: reserve},
		agentHash: sync.OnceValues(func() (string, error) { return hashFile(agent) })}
	kernels, err := s.Kernels(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, k := range kernels {
		known[k.ID] = true
	}
	return c, c.shelf.Sweep(ctx, log, known)
}

// Import makes a kernel of the tar in r (see kernel.Pack), ready to boot. After an
// error nothing is left.
func (c *Kernels) Import(ctx context.Context, name string, r io.Reader) error {
	var info kernel.Info
	err := c.shelf.Import(ctx, name,
		func() error { _, err := c.store.Kernel(ctx, name); return err },
		func(ctx context.Context, dir string) (err error) { info, err = kernel.Import(ctx, r, dir); return err },
		func(ctx context.Context, id string) (err error) {
			k := &store.Kernel{ID: id, Name: name, Release: info.Release, Size: info.Size, SHA256: info.SHA256,
				Modules: info.Modules, MinMemoryMiB: info.MinMemoryMiB, ImportedAt: time.Now().UTC()}
			if k.InitrdSHA256, k.InitrdAgent, err = c.send(ctx, k); err != nil {
				return err
			}
			return c.store.InsertKernel(ctx, k)
		})
	if err != nil {
		c.gc(context.WithoutCancel(ctx))
	}
	return err
}

// gc removes blobs of kernels that are gone. Not to have done it costs only
// room, and a blob taken too early is sent again when it is missed.
func (c *Kernels) gc(ctx context.Context) {
	ks, err := c.store.Kernels(ctx)
	keep := []string{}
	for _, k := range ks {
		keep = append(keep, k.SHA256, k.InitrdSHA256)
	}
	if err == nil {
		err = c.blobs.GCBlobs(ctx, keep)
	}
	if err != nil {
		c.log.WarnContext(ctx, "cannot remove blobs that nobody needs", "error", err)
	}
}

// Blobs returns the sha256 of kernel and initrd as the helper knows them. With
// resend, or when the agent has changed, they are sent to it first.
func (c *Kernels) Blobs(ctx context.Context, k *store.Kernel, resend bool) (elf, initrd string, err error) {
	agent, err := c.agentHash()
	if err != nil {
		return "", "", fmt.Errorf("cannot read the agent: %w", err)
	}
	if !resend && k.InitrdAgent == agent {
		return k.SHA256, k.InitrdSHA256, nil
	}
	c.build.Lock()
	defer c.build.Unlock()
	now, err := c.store.KernelByID(ctx, k.ID) // another start may have done it meanwhile
	if err != nil {
		return "", "", err
	}
	if now.InitrdAgent == agent && now.InitrdAgent != k.InitrdAgent {
		return now.SHA256, now.InitrdSHA256, nil
	}
	if initrd, agent, err = c.send(ctx, k); err != nil {
		return "", "", fmt.Errorf("cannot prepare kernel %q: %w", k.Name, err)
	}
	if err := c.store.SetInitrd(ctx, k.ID, initrd, agent); err != nil {
		return "", "", err
	}
	c.gc(ctx) // the initrd of the agent before
	return k.SHA256, initrd, nil
}

// send builds the kernel's initrd and gives both to the helper.
func (c *Kernels) send(ctx context.Context, k *store.Kernel) (initrd, agent string, err error) {
	if agent, err = c.agentHash(); err != nil {
		return "", "", fmt.Errorf("cannot read the agent: %w", err)
	}
	dir := c.shelf.Path(k.ID)
	if err := kernel.BuildInitrd(dir, c.agent, filepath.Join(dir, "initrd")); err != nil {
		return "", "", err
	}
	elf, err := c.blobs.PutBlob(ctx, filepath.Join(dirName, k.ID, "vmlinux"))
	if err != nil {
		return "", "", err
	}
	if elf.SHA256 != k.SHA256 {
		return "", "", api.Internal("its files have changed since the import").WithHint("delete and import it again")
	}
	b, err := c.blobs.PutBlob(ctx, filepath.Join(dirName, k.ID, "initrd"))
	return b.SHA256, agent, err
}

// Delete removes a kernel that no VM boots.
func (c *Kernels) Delete(ctx context.Context, name string) error {
	k, err := c.store.Kernel(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return c.shelf.Missing(name)
	} else if err != nil {
		return err
	}
	err = c.shelf.Delete(name, k.ID, k.UsedBy, func() error { return c.store.DeleteKernel(ctx, k.ID) })
	if err == nil {
		c.gc(ctx)
	}
	return err
}

// List returns all kernels by name.
func (c *Kernels) List(ctx context.Context) ([]api.Kernel, error) {
	ks, err := c.store.Kernels(ctx)
	out := make([]api.Kernel, len(ks))
	for n, k := range ks {
		out[n] = api.Kernel{Name: k.Name, Release: k.Release, Size: k.Size, Modules: k.Modules, SHA256: k.SHA256,
			ImportedAt: k.ImportedAt, UsedBy: k.UsedBy}
	}
	return out, err
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
