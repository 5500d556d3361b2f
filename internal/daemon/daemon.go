// Package daemon is bangerd: the composition root, the HTTP API (routes in
// api_<noun>.go), operations and their event streams. The logic itself is in
// packages vm, image and kernel.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"banger/internal/artifact"
	"banger/internal/config"
	"banger/internal/disk"
	"banger/internal/dns"
	"banger/internal/doctor"
	"banger/internal/helper"
	"banger/internal/identity"
	"banger/internal/install"
	"banger/internal/installed"
	"banger/internal/jsonhttp"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/vm"
)

// Daemon is a running bangerd.
type Daemon struct {
	log     *slog.Logger
	record  installed.Record
	host    doctor.Host
	config  config.Config
	store   *store.Store
	helper  *helper.Client
	hosts   *identity.Authority
	images  *artifact.Images
	kernels *artifact.Kernels
	vms     *vm.Manager
	names   dns.Table
	ops     *operations
	leases  *leases
	server  *http.Server
	// ending ends the streams that have no end of their own.
	ending context.Context
	end    context.CancelCauseFunc
	tasks  sync.WaitGroup // run until then
}

// Open makes a daemon of an installed banger and compares its records with the
// host. It serves nothing yet.
func Open(ctx context.Context, log *slog.Logger) (d *Daemon, err error) {
	d = &Daemon{log: log, helper: helper.NewClient(paths.HelperSocket), ops: newOperations(log)}
	d.ending, d.end = context.WithCancelCause(context.WithoutCancel(ctx))
	d.leases = newLeases(d.abandoned)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.record, err = installed.Load(paths.InstallFile); err != nil {
		return d, err
	}
	// The unit gets its user from a drop-in, which may be gone.
	if uid := os.Geteuid(); uid != d.record.UID {
		return d, fmt.Errorf("cannot serve %s as uid %d, want %d: run `banger system install` again", d.record.Owner, uid, d.record.UID)
	}
	units, err := install.UnitTexts(d.record)
	if err != nil {
		return d, err
	}
	d.host = doctor.ThisHost(d.record, units)
	if d.config, err = config.Load(paths.ConfigFile); err != nil {
		return d, err
	}
	if d.hosts, err = identity.Open(filepath.Join(paths.StateDir, "identity")); err != nil {
		return d, err
	}
	if d.store, err = store.Open(ctx, filepath.Join(paths.StateDir, "banger.db")); err != nil {
		return d, err
	}
	if d.images, err = artifact.OpenImages(ctx, d.store, filepath.Join(paths.StateDir, "images"), d.config.VMDefaults.ImageSize, d.room(), log); err != nil {
		return d, err
	}
	agent := filepath.Join(paths.LibexecDir, "banger-agent")
	if d.kernels, err = artifact.OpenKernels(ctx, d.store, paths.StateDir, agent, d.room(), d.helper, log); err != nil {
		return d, err
	}
	d.vms, err = vm.NewManager(ctx, vm.Options{
		Store: d.store, Helper: d.helper, Kernels: d.kernels, Hosts: d.hosts, Log: log,
		Names: &d.names, Zone: Zone, Disks: workFiles{}, Record: d.record,
		StateDir: paths.StateDir, ExitDir: paths.ExitDir, JailDir: paths.JailDir,
		RunDir: paths.RunDir, ForwardSwitch: paths.ForwardSwitch, Reserve: d.config.DiskReserve,
		DefaultImage: d.config.DefaultImage, DefaultKernel: d.config.DefaultKernel,
		DefaultVCPU: d.config.VMDefaults.VCPU, DefaultMemory: d.config.VMDefaults.MemoryMiB,
		DefaultDisk: d.config.VMDefaults.DiskBytes, DefaultNAT: d.config.VMDefaults.NAT,
		DefaultIdleStop: d.config.AutoStopStaleAfter, StartTimeout: d.config.VMDefaults.StartTimeout,
	})
	if err != nil {
		return d, err
	}
	d.watchSpace()
	err = d.expectLeases(ctx)
	return d, err
}

// workFiles makes the files of work disks.
type workFiles struct{}

func (workFiles) Create(ctx context.Context, path string, bytes int64) error {
	return disk.MakeWork(ctx, path, bytes)
}

func (workFiles) Grow(path string, bytes int64) error { return disk.Grow(path, bytes) }

// room is what has to be free, in bytes, before disks may grow again, and what an
// import leaves: the reserve and half as much.
func (d *Daemon) room() int64 { return d.config.DiskReserve * 3 / 2 }

// watchSpace pauses VMs while the disk that theirs lie on is nearly full.
func (d *Daemon) watchSpace() {
	guard := &disk.Guard{Dir: paths.StateDir, Reserve: d.config.DiskReserve, Resume: d.room(),
		Changed: func(low bool, free int64) { d.vms.LowSpace(d.ending, low, free) }}
	// VMs may be paused for it since before this bangerd: they go on as soon as
	// there is room, and what runs is paused if there is none.
	guard.Low = true
	if free, err := disk.Free(paths.StateDir); err == nil && free < guard.Reserve {
		d.vms.LowSpace(d.ending, true, free)
	}
	d.tasks.Go(func() { guard.Run(d.ending) })
}

// maxConns is how many connections a user may have to bangerd: a few for each
// VM, for leases and those who watch. A session in a guest does not count.
const maxConns = 4096

// Serve answers on l until the context ends, then lets the open requests
// finish and cancels the operations that are under way.
func (d *Daemon) Serve(ctx context.Context, l net.Listener) error {
	d.server = jsonhttp.NewServer(jsonhttp.OnlyUIDs(d.routes(), uint32(d.record.UID)))
	l = jsonhttp.LimitConns(d.server, l, maxConns)
	failed := make(chan error, 1)
	go func() { failed <- d.server.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	d.leases.close() // those who hold one have not gone, we do
	d.ops.close()    // so that watchers see the end of what they watch
	d.end(vm.ErrEnding)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := d.server.Shutdown(ctx); err != nil {
		return d.server.Close()
	}
	return nil
}

// Close ends what Open began. VMs go on.
func (d *Daemon) Close() error {
	d.leases.close()
	d.ops.close()
	d.end(vm.ErrEnding)
	d.tasks.Wait()
	var errs []error
	if d.vms != nil {
		errs = append(errs, d.vms.Close())
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	return errors.Join(errs...)
}
