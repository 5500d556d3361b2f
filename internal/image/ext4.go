package image

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	tools        tools
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
	// The staging tree has done its duty; removing it takes as long as the rest.
	removed := make(chan error, 1)
	go func() { removed <- b.removeTree() }()
	err = b.describe(ctx)
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
	cmd := b.command(ctx, b.tools.mke2fs, append(args, "-d", filepath.Join(b.stage, stagedTree), b.image)...)
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

// describe tells the image what the staging tree could not hold.
func (b *builder) describe(ctx context.Context) error {
	if err := b.number(ctx); err != nil {
		return err
	}
	return b.apply(ctx, func(s *script) { s.tree(b.tree.root) })
}

func (b *builder) apply(ctx context.Context, write func(*script)) error {
	echo, err := b.debugfs(ctx, "apply", write, "-w")
	if err != nil {
		return err
	}
	defer echo.Close() // removed with the staging directory
	if err := checkOutput(echo, "debugfs: ", "Allocated inode: "); err != nil {
		return toolFailed(ctx, "debugfs", err)
	}
	return nil
}

// debugfs runs a script, in one go and all of it, and returns what it says beside
// complaints. Into files: through pipes each of its many lines would wake us. Two,
// as a line of the one may end up within a line of the other.
func (b *builder) debugfs(ctx context.Context, name string, write func(*script), options ...string) (echo *os.File, err error) {
	file := func(kind string) string { return filepath.Join(b.stage, name+"."+kind) }
	if err := b.writeScript(file("script"), write); err != nil {
		return nil, err
	}
	complaints, err := os.Create(file("complaints"))
	if err != nil {
		return nil, fmt.Errorf("cannot import image: %w", err)
	}
	defer complaints.Close() // removed with the staging directory
	if echo, err = os.Create(file("echo")); err != nil {
		return nil, fmt.Errorf("cannot import image: %w", err)
	}
	cmd := b.command(ctx, b.tools.debugfs, append(options, "-f", file("script"), b.image)...)
	cmd.Stdout, cmd.Stderr = echo, complaints
	err = cmd.Run()
	for _, f := range []*os.File{complaints, echo} {
		_, seekErr := f.Seek(0, io.SeekStart)
		err = errors.Join(err, seekErr)
	}
	if err = errors.Join(err, checkOutput(complaints, "debugfs 1.")); err != nil { // its version
		return nil, errors.Join(toolFailed(ctx, "debugfs", err), echo.Close())
	}
	return echo, nil
}

var inodeLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?m)^Inode: (\d+) `) })

// inodeOf returns the number of what has a path. Given as an argument of the
// program it may hold line breaks.
func (b *builder) inodeOf(ctx context.Context, path string) (uint32, error) {
	out, err := b.command(ctx, b.tools.debugfs, "-R", "stat "+quote("/"+path), b.image).CombinedOutput()
	m := inodeLine().FindSubmatch(out)
	if err == nil && m == nil {
		err = errors.New("no inode")
	}
	var n uint64
	if err == nil {
		n, err = strconv.ParseUint(string(m[1]), 10, 32)
	}
	if err != nil {
		return 0, toolFailed(ctx, "debugfs", fmt.Errorf("%w: %s", err, lastLines(out)))
	}
	return uint32(n), nil
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
