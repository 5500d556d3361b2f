package agent

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExt4Size(t *testing.T) {
	head := func(change func([]byte)) []byte {
		b := make([]byte, ext4HeadSize)
		le := binary.LittleEndian
		le.PutUint16(b[0x38:], ext4Magic)
		le.PutUint32(b[0x18:], 2)
		le.PutUint32(b[0x4:], 8192)
		le.PutUint32(b[0x150:], 1) // of no meaning without the feature
		change(b)
		return b
	}
	for name, tt := range map[string]struct {
		head         []byte
		blocks, size uint64
	}{
		"plain":      {head(func([]byte) {}), 8192, 4096},
		"64 bit":     {head(func(b []byte) { b[0x60] = ext4Is64bit }), 1<<32 + 8192, 4096},
		"no magic":   {head(func(b []byte) { b[0x38] = 0 }), 0, 0},
		"wild block": {head(func(b []byte) { b[0x18] = 60 }), 0, 0},
		"short":      {make([]byte, 100), 0, 0},
	} {
		blocks, size, err := ext4Size(tt.head)
		if blocks != tt.blocks || size != tt.size || (err == nil) != (tt.size > 0) {
			t.Errorf("%s: %d blocks of %d, %v", name, blocks, size, err)
		}
	}
}

func TestResizedDisk(t *testing.T) {
	for event, want := range map[string]string{
		"change@/devices/x/block/vdb\x00ACTION=change\x00SUBSYSTEM=block\x00RESIZE=1\x00DEVNAME=vdb\x00": "vdb",
		"change@/devices/x/block/vdb\x00ACTION=change\x00SUBSYSTEM=block\x00DEVNAME=vdb\x00":             "",
		"change@/x\x00SUBSYSTEM=net\x00RESIZE=1\x00DEVNAME=vdb\x00":                                      "",
		"": "",
	} {
		if got := resizedDisk([]byte(event)); got != want {
			t.Errorf("%q is about %q", event, got)
		}
	}
}

func openDirectory(t *testing.T, dir string) int {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func TestCopyKeepsWhatBelongsToFiles(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	create(t, from+"/file", "text", 0o640)
	create(t, from+"/dir/deep/x", "x", 0o600)
	create(t, from+"/empty", "", 0o444)
	symlink(t, "/etc/passwd", from+"/link")
	if err := os.Link(from+"/file", from+"/dir/again"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(from+"/fifo", 0o622); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(from+"/dir/deep/x", 1<<20); err != nil { // mostly a hole
		t.Fatal(err)
	}
	if err := os.Chmod(from+"/dir/deep", 0o2751); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1_000_000_000, 123456789)
	for _, name := range []string{"/file", "/dir/deep/x", "/dir/deep", "/dir", "/fifo"} {
		if err := os.Chtimes(from+name, old, old); err != nil {
			t.Fatal(err)
		}
	}
	top := openDirectory(t, to)
	c := copier{links: map[inode]string{}, top: top}
	if err := c.directory(openDirectory(t, from), top, "."); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(from, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		copied := to + path[len(from):]
		var a, b unix.Stat_t
		if err := unix.Lstat(path, &a); err != nil {
			return err
		}
		if err := unix.Lstat(copied, &b); err != nil {
			return err
		}
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Mtim != b.Mtim || a.Rdev != b.Rdev || (a.Mode&unix.S_IFMT != unix.S_IFDIR && (a.Nlink != b.Nlink || a.Size != b.Size)) {
			t.Errorf("%s: %+v became %+v", path, a, b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(to + "/link"); target != "/etc/passwd" {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	if b, err := os.ReadFile(to + "/dir/again"); string(b) != "text" {
		t.Errorf("the file's other name: %q, %v", b, err)
	}
}

func TestRemoveAllFollowsNoLink(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	create(t, outside+"/kept", "", 0o600)
	create(t, dir+"/a/b/c", "", 0o400)
	symlink(t, outside, dir+"/a/out")
	if err := removeAll(openDirectory(t, dir), "a"); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(outside + "/kept"); err != nil {
		t.Error(err)
	}
}
