package machine

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/appliance"
)

// Files of the cache's entries and of a machine.
const (
	baseDisk      = "base.raw"
	installedDisk = "installed.qcow2"
	ownDisk       = "disk.qcow2"
	kernelFile    = "vmlinuz"
	initrdFile    = "initrd.img"
	imageFile     = "debian.tar"
	programsFile  = "programs.tar"
)

// Drives that a machine has while banger is installed in it.
const (
	imageDrive    = "image"
	programsDrive = "programs"
)

// diskSize is what the appliance sees; its file is sparse.
const diskSize = 64 << 30

// appliance returns the cached directory with the appliance's disk, kernel and
// initrd.
func (c cache) appliance(ctx context.Context, p Progress) (dir, hash string, err error) {
	if hash, err = appliance.Hash(); err != nil {
		return "", "", err
	}
	hash = textHash(hash, fmt.Sprint(diskSize), textHash(debootstrapArgs(nil, applianceArgs...)...), textHash(makeDiskArgs...))
	dir, err = c.entry(ctx, "appliance", hash, p, func(dir string) error {
		return buildAppliance(ctx, dir, p)
	})
	return dir, hash, err
}

// image returns the cached directory with the default image.
func (c cache) image(ctx context.Context, p Progress) (dir, hash string, err error) {
	if hash, err = appliance.ImageHash(); err != nil {
		return "", "", err
	}
	hash = textHash(hash, textHash(debootstrapArgs(nil)...))
	dir, err = c.entry(ctx, "image", hash, p, func(dir string) error {
		if err := requireTools(buildTools()...); err != nil {
			return err
		}
		p.step("making the default image (mmdebstrap)")
		names, err := appliance.ImagePackages()
		if err != nil {
			return err
		}
		return debootstrap(ctx, dir, filepath.Join(dir, imageFile), names)
	})
	return dir, hash, err
}

func textHash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return hex.EncodeToString(sum[:])
}

// buildTools are the programs without which no appliance can be made.
func buildTools() []string {
	tools := []string{"mmdebstrap", "mke2fs", "tar", "qemu-img"}
	if os.Geteuid() != 0 {
		tools = append(tools, "fakeroot", "newuidmap")
	}
	return tools
}

// applianceArgs lay our files over the packages. mmdebstrap has special hooks
// and those it gives to sh; it runs in the directory of the files they name, so
// no path has to be quoted for it.
var applianceArgs = []string{
	"--dpkgopt=force-confold", // our files are there before the packages that ship them
	`--essential-hook=tar-in overlay.tar /`,
	`--customize-hook=upload setup.sh /setup.sh`,
	`--customize-hook=chroot "$1" sh /setup.sh`,
	`--customize-hook=chroot "$1" rm /setup.sh`,
}

func buildAppliance(ctx context.Context, dir string, p Progress) error {
	if err := requireTools(buildTools()...); err != nil {
		return err
	}
	p.step("making the appliance (mmdebstrap)")
	overlay, setup, root := filepath.Join(dir, "overlay.tar"), filepath.Join(dir, "setup.sh"), filepath.Join(dir, "root.tar")
	if err := writeOverlay(overlay); err != nil {
		return fmt.Errorf("cannot write the appliance's files: %w", err)
	}
	script, err := appliance.Setup()
	if err != nil {
		return err
	}
	if err := os.WriteFile(setup, script, 0o644); err != nil {
		return err
	}
	names, err := appliance.Packages()
	if err != nil {
		return err
	}
	if err := debootstrap(ctx, dir, root, names, applianceArgs...); err != nil {
		return err
	}
	p.step("making the appliance's disk")
	if err := buildDisk(ctx, dir, root); err != nil {
		return err
	}
	return errors.Join(os.Remove(overlay), os.Remove(setup), os.Remove(root))
}

// writeOverlay writes the appliance's own files as a tar of root's.
func writeOverlay(path string) error {
	root, err := appliance.Root()
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	err = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || name == ".":
			return err
		case d.IsDir():
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
		}
		content, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		return addFile(w, name, 0o644, content)
	})
	return errors.Join(err, w.Close(), f.Close())
}

func addFile(w *tar.Writer, name string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// debootstrapArgs are the words that decide what mmdebstrap makes, wherever and by
// whomever it is run: the cache's key holds them.
func debootstrapArgs(packages []string, more ...string) []string {
	return slices.Concat([]string{"--variant=minbase", "--format=tar", "--include=" + strings.Join(packages, ","),
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-include=/usr/share/doc/*/copyright",
	}, more, []string{appliance.Suite})
}

// debootstrap makes a Debian root filesystem of the named packages as the tar
// file out. Its hooks find their files in dir.
func debootstrap(ctx context.Context, dir, out string, packages []string, more ...string) error {
	argv := []string{"mmdebstrap", "--mode=root"}
	if os.Geteuid() != 0 {
		argv[1] = "--mode=unshare"
	}
	argv = slices.Concat(argv, debootstrapArgs(packages, more...), []string{"-"})
	if sources := hostSources("/"); sources != "" {
		argv = append(argv, sources)
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	err = runTool(ctx, command{argv: argv, dir: dir, own: true, stdout: f})
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot make a Debian root filesystem: %w", err)
	}
	return nil
}

// hostSources returns the apt sources of a host that runs the very release we
// want, since the host's administrator knows best where Debian is to be had;
// "" leaves it to mmdebstrap.
func hostSources(root string) string {
	release, err := os.ReadFile(filepath.Join(root, "etc/os-release"))
	if err != nil || !strings.Contains(string(release), "VERSION_CODENAME="+appliance.Suite+"\n") {
		return ""
	}
	for _, name := range []string{"etc/apt/sources.list.d/debian.sources", "etc/apt/sources.list"} {
		path := filepath.Join(root, name)
		text, err := os.ReadFile(path)
		if err == nil && usableSources(string(text)) {
			return path
		}
	}
	return ""
}

// usableSources tells whether text names an archive; a host that was installed
// from a disc may still name that.
func usableSources(text string) bool {
	found := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.Contains(line, "cdrom:") {
			return false
		}
		found = found || strings.HasPrefix(line, "deb ") || strings.HasPrefix(line, "deb\t") || strings.HasPrefix(line, "URIs:")
	}
	return found
}

// makeDiskArgs are mke2fs's. Everything is initialised here and now (mostly as
// holes of the file): otherwise the guest's kernel would do it again in every
// machine.
var makeDiskArgs = []string{"-q", "-t", "ext4", "-L", "banger-machine", "-m", "0", "-N", "500000",
	"-E", "lazy_itable_init=0,lazy_journal_init=0"}

// buildDisk makes the appliance's disk of the tar file root, and takes kernel
// and initrd out of it.
func buildDisk(ctx context.Context, dir, root string) error {
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	defer removeTree(tree)
	disk := filepath.Join(dir, baseDisk)
	f, err := os.Create(disk)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return fmt.Errorf("cannot make the appliance's disk: %w", err)
	}
	// fakeroot remembers for mke2fs whose files tar was told to make.
	unpack, makeFS := []string{}, []string{}
	if os.Geteuid() != 0 {
		state := filepath.Join(dir, "fakeroot")
		defer removeTree(state)
		unpack = []string{"fakeroot", "-s", state, "--"}
		makeFS = []string{"fakeroot", "-i", state, "--"}
	}
	unpack = append(unpack, "tar", "--extract", "--numeric-owner", "--same-permissions", "--file", root, "--directory", tree)
	if err := runTool(ctx, command{argv: unpack}); err != nil {
		return fmt.Errorf("cannot unpack the appliance: %w", err)
	}
	mke2fs, err := lookTool("mke2fs")
	if err != nil {
		return err
	}
	makeFS = slices.Concat(makeFS, []string{mke2fs}, makeDiskArgs, []string{"-d", tree, disk})
	if err := runTool(ctx, command{argv: makeFS}); err != nil {
		return fmt.Errorf("cannot make the appliance's disk: %w", err)
	}
	return errors.Join(takeOut(tree, "boot/vmlinuz-*", filepath.Join(dir, kernelFile)),
		takeOut(tree, "boot/initrd.img-*", filepath.Join(dir, initrdFile)))
}

// takeOut moves the one file of tree that fits pattern to path.
func takeOut(tree, pattern, path string) error {
	found, err := filepath.Glob(filepath.Join(tree, pattern))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("the appliance has %d files %s, not one", len(found), pattern)
	}
	if err := os.Rename(found[0], path); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

// fileHash returns the sha256 of a file.
func fileHash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("cannot read %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
