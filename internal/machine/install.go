package machine

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"banger/internal/version"
)

// installed returns the cached directory with a disk on which banger, its
// kernels and (with image) the default image are installed. The hash covers
// the programs, so a changed program is installed afresh.
func (c cache) installed(ctx context.Context, bins binaries, own guestKernel, image bool, g guest, p Progress) (string, error) {
	base, hash, err := c.appliance(ctx, p)
	if err != nil {
		return "", err
	}
	imageHash := ""
	if image {
		dir, hash, err := c.image(ctx, p)
		if err != nil {
			return "", err
		}
		imageHash, g.drives = hash, []drive{{imageDrive, filepath.Join(dir, imageFile)}}
	}
	return c.entry(ctx, "installed", textHash(hash, bins.hash, imageHash, own.hash), p, func(dir string) error {
		for _, name := range []string{baseDisk, kernelFile, initrdFile} {
			if err := linkOrCopy(ctx, filepath.Join(base, name), filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		g.dir, g.disk, g.disposable = dir, installedDisk, true // a crash means: once more
		return g.install(ctx, bins, own, p)
	})
}

// install boots an appliance as it comes and makes a host of banger of it.
func (g guest) install(ctx context.Context, bins binaries, own guestKernel, p Progress) (err error) {
	if err := newDisk(ctx, g.dir, g.disk, baseDisk, "raw"); err != nil {
		return err
	}
	if err := writeKeys(ctx, g.dir); err != nil {
		return err
	}
	if g.accel, err = pickAccel(ctx, g.dir, p); err != nil {
		return err
	}
	image := len(g.drives) > 0
	if err := g.takeDrives(ctx, bins, own); err != nil {
		return err
	}
	p.step("booting the appliance (%s)", g.accel)
	if _, err := g.boot(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, killRun(g.dir)) }()
	m := &Machine{Dir: g.dir}
	p.step("installing banger in the machine")
	if err := m.systemInstall(ctx, own, nil, "tar -xf /dev/disk/by-id/virtio-banger-"+programsDrive); err != nil {
		return err
	}
	if image {
		p.step("importing the default image")
		// The tar is a drive: nothing is copied over the network. bangerd's
		// client belongs to the owner, so the owner gets the open drive.
		const script = `exec runuser -u ` + Owner + ` -- banger image import debian - </dev/disk/by-id/virtio-banger-` + imageDrive
		if err := m.runIn(ctx, nil, "sh", "-c", script); err != nil {
			return fmt.Errorf("cannot import the default image: %w", err)
		}
	}
	if err := g.shutDown(ctx, m.poweroff); err != nil {
		return err
	}
	for _, name := range []string{userKeyFile, knownHostsFile, seedFile, sshConfigFile, imageFile, programsFile, "qemu.log", "console.log"} {
		if err := os.Remove(filepath.Join(g.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// takeDrives puts what install hands to the guest into the guest's directory:
// the default image, if it is among the drives, and the programs with the kernel.
func (g *guest) takeDrives(ctx context.Context, bins binaries, own guestKernel) error {
	for i, d := range g.drives {
		name := filepath.Base(d.file)
		if err := linkOrCopy(ctx, d.file, filepath.Join(g.dir, name)); err != nil {
			return err
		}
		g.drives[i].file = name
	}
	f, err := os.Create(filepath.Join(g.dir, programsFile))
	if err != nil {
		return err
	}
	g.drives = append(g.drives, drive{programsDrive, programsFile})
	return errors.Join(writeTar(f, bins, own), f.Close())
}

// systemInstall runs the installation that a real host gets, with the programs
// that unpack, a command of the shell, leaves in its directory; and makes the
// guest kernel, if there is one, what VMs boot by default.
func (m *Machine) systemInstall(ctx context.Context, own guestKernel, stdin io.Reader, unpack string) error {
	script := `set -e; rm -rf ` + installDir + `; mkdir -m 0711 ` + installDir + `; cd ` + installDir + `; ` + unpack + `
		./banger system install --owner ` + Owner + ` </dev/null
		` + own.install() + `
		cd /; rm -rf ` + installDir
	if err := m.runIn(ctx, stdin, "sh", "-c", script); err != nil {
		return fmt.Errorf("cannot install banger in the machine: %w", err)
	}
	return nil
}

const installDir = "/var/tmp/banger-install"

// runIn runs argv in the machine as root, over a connection of its own: a
// shared one would outlive a command that is cancelled, and keep its output open.
func (m *Machine) runIn(ctx context.Context, stdin io.Reader, argv ...string) error {
	cmd := m.SSHCommand(ctx, Root, false, argv...)
	argv = append([]string{"ssh", "-o", "ControlPath=none"}, cmd.Args[1:]...)
	return runTool(ctx, command{argv: argv, stdin: stdin})
}

// update brings the running machine to the programs bins and the guest kernel own.
// A kernel it has stays when there is none now: it still works.
func (m *Machine) update(ctx context.Context, bins binaries, own guestKernel, p Progress) error {
	r, err := m.readRecord()
	if err != nil || r.Binaries == bins.hash && (own.hash == "" || r.GuestKernel == own.hash) {
		return err
	}
	if r.GuestKernel == own.hash {
		own = guestKernel{}
	}
	p.step("updating banger in the machine")
	pipe, w := io.Pipe()
	go func() {
		z := gzip.NewWriter(w) // the way in is slow where the machine is emulated
		_ = w.CloseWithError(errors.Join(writeTar(z, bins, own), z.Close()))
	}()
	err = m.systemInstall(ctx, own, pipe, "tar -xzf -")
	_ = pipe.Close() // ends the writer should the reader have gone first
	if err != nil {
		return err
	}
	r.Binaries, r.Version = bins.hash, version.Version
	if own.hash != "" {
		r.GuestKernel = own.hash
	}
	return writeJSON(m.path(recordFile), r)
}
