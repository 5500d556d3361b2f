package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"banger/api"
)

// Parts of the staging directory.
const (
	stagedTree   = "root"
	stagedValues = "values"
	stagedScript = "script"
)

const (
	blockSize = 4096
	// bytesPerInode and inodeSize are mke2fs's own defaults, made explicit.
	bytesPerInode = 16384
	inodeSize     = 256
)

// features is what every kernel since 4.2 can mount; nothing is left to
// /etc/mke2fs.conf, which differs between hosts.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

type tools struct{ mke2fs, debugfs string }

// findTools looks where e2fsprogs may be: an ordinary user's PATH often lacks
// the sbin directories.
func findTools() (tools, error) {
	var t tools
	for name, to := range map[string]*string{"mke2fs": &t.mke2fs, "debugfs": &t.debugfs} {
		for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
			if found, err := exec.LookPath(candidate); err == nil {
				*to = found
				break
			}
		}
		if *to == "" {
			return tools{}, api.Problemf(503, api.CodePrerequisite, "cannot import image: the program %s is missing", name).
				WithHint("install the package e2fsprogs")
		}
	}
	return t, nil
}

// builder makes the image of a tree that was staged.
type builder struct {
	tools
	stage, image string
	tree         *tree
}

func (b *builder) build(ctx context.Context, size int64) (Info, error) {
	size, err := b.size(size)
	if err != nil {
		return Info{}, err
	}
	if err := b.make(ctx, size); err != nil {
		return Info{}, err
	}
	script := filepath.Join(b.stage, stagedScript)
	if err := b.writeScript(ctx, script); err != nil {
		return Info{}, err
	}
	// The staging tree has done its duty; removing it takes as long as the script.
	removed := make(chan error, 1)
	go func() { removed <- b.removeTree() }()
	err = b.runScript(ctx, script)
	if err := errors.Join(err, <-removed); err != nil {
		return Info{}, err
	}
	disk, err := b.sync()
	return Info{Size: size, DiskBytes: disk, Files: b.tree.entries}, err
}

// removers is how many directories are removed at once: for the most part it is
// waiting, for data that is just being written.
const removers = 8

// removeTree removes the staging tree. No symbolic link in it is followed: the
// directories are those of the tree in memory, below a root.
func (b *builder) removeTree() error {
	dir := filepath.Join(b.stage, stagedTree)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var g errgroup.Group
	g.SetLimit(removers)
	for _, top := range b.tree.root.children {
		for _, d := range top.children { // e.g. /usr/lib; of other files there are none
			if d.isDir() {
				g.Go(func() error { return root.RemoveAll(d.path()) })
			}
		}
	}
	return errors.Join(g.Wait(), os.RemoveAll(dir))
}

// size of the filesystem: as wanted, but with room for the content.
func (b *builder) size(want int64) (int64, error) {
	if want == 0 {
		want = defaultSize
	}
	content := b.tree.blocks + int64(b.tree.entries)*inodeSize
	want = max(want, content+content/4+64<<20)
	const unit = 1 << 20
	want = (want + unit - 1) / unit * unit
	if want > largestSize {
		return 0, api.BadRequest("a filesystem of %d GiB is too large for an image", want>>30)
	}
	return want, nil
}

// make creates the image file from the staging tree.
func (b *builder) make(ctx context.Context, size int64) error {
	f, err := os.OpenFile(b.image, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		return fmt.Errorf("cannot import image: %w", err)
	}
	args := []string{"-q", "-F", "-t", "ext4", "-O", features, "-m", "0",
		"-b", strconv.Itoa(blockSize), "-I", strconv.Itoa(inodeSize),
		"-E", "assume_storage_prezeroed=1,root_owner=0:0"}
	if size >= 2<<30 {
		// The default grows with the size, and a guest fills its journal again
		// and again: all of it ends up in each VM's overlay.
		args = append(args, "-J", "size=64")
	}
	if inodes := int64(b.tree.entries)*5/4 + 1024; inodes > size/bytesPerInode {
		args = append(args, "-N", strconv.FormatInt(inodes, 10))
	} else {
		args = append(args, "-i", strconv.Itoa(bytesPerInode))
	}
	cmd := b.command(ctx, b.mke2fs, append(args, "-d", filepath.Join(b.stage, stagedTree), b.image)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return toolFailed(ctx, "mke2fs", fmt.Errorf("%w: %s", err, lastLines(out)))
	}
	return nil
}

// command runs with a neutral locale and configuration, in the directory of
// the attributes' values.
func (b *builder) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = filepath.Join(b.stage, stagedValues)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "MKE2FS_CONFIG=/dev/null"}
	return cmd
}

// toolFailed makes an error of what a program said, which is all it tells: the
// last lines, and whether it was the disk that was full. (A full image would
// be told in other words.)
func toolFailed(ctx context.Context, tool string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("cannot import image: %w", ctx.Err())
	}
	switch said := err.Error(); {
	case strings.Contains(said, "No space left on device"):
		err = errors.Join(unix.ENOSPC, err)
	case strings.Contains(said, "Disk quota exceeded"):
		err = errors.Join(unix.EDQUOT, err)
	}
	return fmt.Errorf("cannot import image: %s failed: %w", tool, err)
}

// lastLines is the end of a program's output, fit for an error.
func lastLines(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return fmt.Sprintf("%.300q", strings.Join(lines[max(0, len(lines)-2):], "; "))
}

// runScript applies the script, in one go and all of it.
func (b *builder) runScript(ctx context.Context, script string) error {
	cmd := b.command(ctx, b.debugfs, "-w", "-f", script, b.image)
	// Into files: through pipes each of its many lines would wake us. Apart, as a
	// line of the one may end up within a line of the other.
	echo, err := os.Create(filepath.Join(b.stage, "echo"))
	if err != nil {
		return fmt.Errorf("cannot import image: %w", err)
	}
	defer echo.Close() // removed with the staging directory
	complaints, err := os.Create(filepath.Join(b.stage, "complaints"))
	if err != nil {
		return fmt.Errorf("cannot import image: %w", err)
	}
	defer complaints.Close() // removed with the staging directory
	cmd.Stdout, cmd.Stderr = echo, complaints
	err = errors.Join(cmd.Run(),
		checkOutput(complaints, "debugfs 1."), // its version
		checkOutput(echo, "debugfs: ", "Allocated inode: "))
	if err != nil {
		return toolFailed(ctx, "debugfs", err)
	}
	return nil
}

var inodeLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?m)^Inode: (\d+) `) })

// inodeOf returns "<N>" for a path. Given as an argument of the program it may
// hold line breaks.
func (b *builder) inodeOf(ctx context.Context, path string) (string, error) {
	out, err := b.command(ctx, b.debugfs, "-R", "stat "+quote("/"+path), b.image).CombinedOutput()
	m := inodeLine().FindSubmatch(out)
	if err == nil && m == nil {
		err = errors.New("no inode")
	}
	if err != nil {
		return "", toolFailed(ctx, "debugfs", fmt.Errorf("%w: %s", err, lastLines(out)))
	}
	return "<" + string(m[1]) + ">", nil
}

// sync brings the image to disk and returns what it takes there.
func (b *builder) sync() (int64, error) {
	f, err := os.Open(b.image)
	if err != nil {
		return 0, fmt.Errorf("cannot import image: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := errors.Join(f.Sync(), unix.Fstat(int(f.Fd()), &st), syncDir(filepath.Dir(b.image))); err != nil {
		return 0, fmt.Errorf("cannot import image: %w", err)
	}
	return st.Blocks * 512, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
