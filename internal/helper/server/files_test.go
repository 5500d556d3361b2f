package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
)

func write(t *testing.T, path string, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOwnerFile(t *testing.T) {
	s, _ := testServer(t)
	outside := filepath.Join(filepath.Dir(s.places.State), "outside")
	write(t, outside, "secret")
	in := func(name string) string { return filepath.Join(s.places.State, name) }
	write(t, in("dir/good"), "x")
	write(t, in("empty"), "")
	write(t, in("two"), "x")
	for _, err := range []error{
		os.Symlink("good", in("dir/link")),
		os.Symlink("dir", in("dirlink")),
		os.Symlink(outside, in("out")),
		os.Symlink("/proc/self/fd", in("magic")),
		os.Link(in("two"), in("one")),
		unix.Mkfifo(in("fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	sock, err := net.Listen("unix", in("sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()

	for _, tt := range []struct{ path, want string }{
		{"dir/good", ""},
		{"dir/./good", api.CodeBadRequest},
		{"dir/../dir/good", api.CodeBadRequest},
		{"dir//good", api.CodeBadRequest},
		{"", api.CodeBadRequest},
		{"none", api.CodeNotFound},
		{"empty", api.CodeBadRequest},
		{"dir", api.CodeBadRequest},
		{".", api.CodeBadRequest},
		{"dir/link", api.CodeBadRequest},
		{"dirlink/good", api.CodeBadRequest},
		{"out", api.CodeBadRequest},
		{"magic/0", api.CodeBadRequest},
		{"../outside", api.CodeBadRequest},
		{"dir/../../outside", api.CodeBadRequest},
		{outside, api.CodeBadRequest},
		{"/etc/passwd", api.CodeBadRequest},
		{"one", api.CodeBadRequest},
		{"fifo", api.CodeBadRequest},
		{"sock", api.CodeBadRequest},
		{"dir/good\x00/x", api.CodeBadRequest},
		{strings.Repeat("x", 5000), api.CodeBadRequest},
	} {
		f, _, err := s.ownerFile(tt.path, unix.O_RDONLY)
		if got := problem(err); got != tt.want {
			t.Errorf("%.60q: %q (%v), want %q", tt.path, got, err, tt.want)
		}
		if err == nil {
			f.Close()
		}
	}
	// A lease that somebody does not give back is no reason to wait.
	write(t, in("leased"), "x")
	leased, err := os.Open(in("leased"))
	if err != nil {
		t.Fatal(err)
	}
	defer leased.Close()
	if _, err := unix.FcntlInt(leased.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.ownerFile("leased", unix.O_RDWR); problem(err) != api.CodeConflict {
		t.Errorf("a leased file: %v", err)
	}
	s.record.UID++ // now everything is somebody else's
	if _, _, err := s.ownerFile("dir/good", unix.O_RDONLY); err == nil {
		t.Error("somebody else's file was opened")
	}
}

func TestPutBlob(t *testing.T) {
	s, _ := testServer(t)
	content := strings.Repeat("kernel", 100000)
	write(t, filepath.Join(s.places.State, "kernel"), content)
	sum := sha256.Sum256([]byte(content))
	want := helper.Blob{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(content))}
	for range 2 { // the second time it is here already
		got, err := s.putBlob(t.Context(), helper.BlobPutRequest{Path: "kernel"})
		if err != nil || got != want {
			t.Fatalf("putBlob = %+v, %v; want %+v", got, err, want)
		}
	}
	entries, err := os.ReadDir(s.places.Blobs)
	if err != nil || len(entries) != 1 || entries[0].Name() != want.SHA256 {
		t.Fatalf("store holds %v, %v", entries, err)
	}
	// What the owner does to his file afterwards is of no interest.
	write(t, filepath.Join(s.places.State, "kernel"), "changed")
	stored := filepath.Join(s.places.Blobs, want.SHA256)
	raw, err := os.ReadFile(stored)
	if err != nil || string(raw) != content {
		t.Errorf("content changed, %v", err)
	}
	if info, err := os.Stat(stored); err != nil || info.Mode() != 0o444 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestPutBlobLimits(t *testing.T) {
	s, _ := testServer(t)
	big := filepath.Join(s.places.State, "big")
	write(t, big, "x")
	if err := os.Truncate(big, maxBlob+1); err != nil { // sparse
		t.Fatal(err)
	}
	if _, err := s.putBlob(t.Context(), helper.BlobPutRequest{Path: "big"}); problem(err) != api.CodeBadRequest {
		t.Errorf("too big: %v", err)
	}
	grown, err := os.Open(filepath.Join(s.places.State, "big"))
	must(t, err)
	defer grown.Close()
	if _, err := s.storeBlob(grown, 5); problem(err) != api.CodeBadRequest {
		t.Errorf("grown meanwhile: %v", err)
	}
	for i := range maxBlobCount {
		write(t, filepath.Join(s.places.Blobs, fmt.Sprintf("%064x", i)), "x")
	}
	write(t, filepath.Join(s.places.State, "small"), "x")
	if _, err := s.putBlob(t.Context(), helper.BlobPutRequest{Path: "small"}); problem(err) != api.CodeNoSpace {
		t.Errorf("too many: %v", err)
	}
	must(t, os.RemoveAll(s.places.Blobs))
	must(t, os.Mkdir(s.places.Blobs, 0o700))
	full := filepath.Join(s.places.Blobs, strings.Repeat("0", 64))
	write(t, full, "x")
	if err := os.Truncate(full, maxBlobs); err != nil {
		t.Fatal(err)
	}
	if _, err := s.putBlob(t.Context(), helper.BlobPutRequest{Path: "small"}); problem(err) != api.CodeNoSpace {
		t.Errorf("over the quota: %v", err)
	}
}

func TestGCKeepsWhatIsWantedOrInAJail(t *testing.T) {
	s, _ := testServer(t)
	var sums []string
	for _, content := range []string{"wanted", "in a jail", "unwanted"} {
		must(t, os.WriteFile(filepath.Join(s.places.State, "f"), []byte(content), 0o600))
		b, err := s.putBlob(t.Context(), helper.BlobPutRequest{Path: "f"})
		must(t, err)
		sums = append(sums, b.SHA256)
	}
	must(t, os.Link(filepath.Join(s.places.Blobs, sums[1]), filepath.Join(s.places.State, "linked")))
	if _, err := s.gcBlobs(t.Context(), helper.BlobGCRequest{Keep: []string{"../../etc/passwd"}}); problem(err) != api.CodeBadRequest {
		t.Errorf("a path for a sum: %v", err)
	}
	_, err := s.gcBlobs(t.Context(), helper.BlobGCRequest{Keep: sums[:1]})
	must(t, err)
	for i, kept := range []bool{true, true, false} {
		if _, err := os.Lstat(filepath.Join(s.places.Blobs, sums[i])); (err == nil) != kept {
			t.Errorf("blob %d: %v", i, err)
		}
	}
}

func TestRemoveTree(t *testing.T) {
	base := t.TempDir()
	treasure := filepath.Join(base, "treasure")
	write(t, filepath.Join(treasure, "a/b"), "keep")
	jail := filepath.Join(base, "jails", "x")
	write(t, filepath.Join(jail, "root/file"), "x")
	write(t, filepath.Join(jail, "root/.hidden/..name/file"), "x")
	write(t, filepath.Join(jail, "sweep.1/rest of an interrupted sweep"), "x")
	for i := range 700 { // more than one read of a directory
		write(t, filepath.Join(jail, "root/many", fmt.Sprint(i)), "")
	}
	for _, link := range []string{"root/link", "link"} {
		if err := os.Symlink(treasure, filepath.Join(jail, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("..", filepath.Join(jail, "root/up")); err != nil {
		t.Fatal(err)
	}
	deep(t, filepath.Join(jail, "root"), 3000) // longer than any path may be
	if err := os.Chmod(filepath.Join(jail, "root/many"), 0o700); err != nil {
		t.Fatal(err)
	}

	parent, err := os.Open(filepath.Join(base, "jails"))
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	for range 2 { // the second time there is nothing
		if err := removeTree(parent, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(parent.Name()); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if raw, err := os.ReadFile(filepath.Join(treasure, "a/b")); err != nil || string(raw) != "keep" {
		t.Errorf("a symlink was followed: %q, %v", raw, err)
	}
}

// deep makes directories nested n times.
func deep(t *testing.T, dir string, n int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := unix.Mkdirat(fd, "a-directory-name", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "a-directory-name", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
}

func TestRemoveTreeThatIsASymlink(t *testing.T) {
	base := t.TempDir()
	write(t, filepath.Join(base, "treasure/file"), "keep")
	if err := os.Symlink("treasure", filepath.Join(base, "x")); err != nil {
		t.Fatal(err)
	}
	parent, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	if err := removeTree(parent, "x"); err == nil {
		t.Error("a symlink was taken for a jail")
	}
	if _, err := os.Stat(filepath.Join(base, "treasure/file")); err != nil {
		t.Error(err)
	}
}

func TestShareSocket(t *testing.T) {
	uid, gid := os.Getuid(), os.Getgid()
	const path = "/run/api.sock"
	// The jail's content as the VMM could have made it: its root is the argument.
	for name, tt := range map[string]struct {
		make func(t *testing.T, root string)
		ok   bool
	}{
		"socket":  {func(t *testing.T, root string) { listen(t, root+path) }, true},
		"nothing": {func(*testing.T, string) {}, false},
		"file":    {func(t *testing.T, root string) { write(t, root+path, "x") }, false},
		"symlink to a socket": {func(t *testing.T, root string) {
			listen(t, root+"/run/real.sock")
			must(t, os.Symlink("real.sock", root+path))
		}, false},
		"socket with two names": {func(t *testing.T, root string) {
			listen(t, root+path)
			must(t, os.Link(root+path, root+"/run/other"))
		}, false},
		"run is a symlink": {func(t *testing.T, root string) {
			must(t, os.Remove(root+"/run"))
			must(t, os.Mkdir(root+"/other", 0o700))
			must(t, os.Symlink("other", root+"/run"))
			listen(t, root+"/other/api.sock")
		}, false},
		"run leads out": {func(t *testing.T, root string) {
			must(t, os.Remove(root+"/run"))
			must(t, os.Symlink("../../outside", root+"/run"))
			must(t, os.Mkdir(root+"/../../outside", 0o700))
			listen(t, root+"/../../outside/api.sock")
		}, false},
		"kernel renamed": {func(t *testing.T, root string) {
			write(t, root+"/vmlinux", "kernel")
			must(t, os.Link(root+"/vmlinux", root+path))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := Places{Jails: t.TempDir()}
			root := p.jailRoot(idA)
			must(t, os.MkdirAll(root+"/run", 0o700))
			tt.make(t, root)
			err := p.shareSocket(idA, uid, gid, path)
			if (err == nil) != tt.ok {
				t.Fatalf("got %v", err)
			}
			want := os.FileMode(0o700)
			if tt.ok {
				want = 0o710
				info, err := os.Lstat(root + path)
				must(t, err)
				if info.Mode().Perm() != 0o660 {
					t.Errorf("socket has mode %v", info.Mode())
				}
			}
			info, err := os.Lstat(root)
			must(t, err)
			if info.Mode().Perm() != want {
				t.Errorf("root has mode %v", info.Mode())
			}
			if err := p.shareSocket(idA, uid+1, gid, path); err == nil {
				t.Error("somebody else's socket was shared")
			}
		})
	}
	if err := (Places{Jails: t.TempDir()}).shareSocket(idA, uid, gid, path); problem(err) != api.CodeConflict {
		t.Errorf("without a jail: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listen makes a socket; its name may be longer than an address can be.
func listen(t *testing.T, path string) {
	t.Helper()
	dir, err := os.Open(filepath.Dir(path))
	must(t, err)
	defer dir.Close()
	l, err := net.Listen("unix", procFD(dir)+"/"+filepath.Base(path))
	must(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	t.Cleanup(func() { l.Close() })
}

func TestOpenTrusted(t *testing.T) {
	for _, path := range []string{"", "relative", "/a/../etc/passwd", "/etc//passwd", "/no/such/file", "/proc/self/exe", "/usr"} {
		if f, err := openTrusted(path); err == nil {
			f.Close()
			t.Errorf("%q is trusted", path)
		}
	}
	mine := filepath.Join(t.TempDir(), "program") // below /tmp, which everybody can write to
	write(t, mine, "x")
	if f, err := openTrusted(mine); err == nil {
		f.Close()
		t.Error("a program in a place for everybody is trusted")
	}
}

func TestTargetsRoundTrip(t *testing.T) {
	base, overlay := &loopDevice{major: 7, minor: 0, sectors: 131072}, &loopDevice{major: 7, minor: 12}
	table := recipe{kind: "snapshot", options: "P 8"}.table([]*loopDevice{base, overlay})
	if table != (dmTarget{131072, "snapshot", "7:0 7:12 P 8"}) {
		t.Errorf("table %+v", table)
	}
	if work := (recipe{kind: "linear", options: "0"}).table([]*loopDevice{base}); work != (dmTarget{131072, "linear", "7:0 0"}) {
		t.Errorf("table %+v", work)
	}
	got, err := decodeTargets(encoded(t, table), 1)
	if err != nil || len(got) != 1 || got[0] != table {
		t.Errorf("decoded %+v, %v", got, err)
	}
}

// encoded is what the kernel gets of a table.
func encoded(t testing.TB, table dmTarget) []byte {
	t.Helper()
	buf, err := dmMessage{table: &table}.encode()
	if err != nil {
		t.Fatal(err)
	}
	var raw []byte
	for _, word := range buf {
		raw = binary.NativeEndian.AppendUint64(raw, word)
	}
	return raw[unix.SizeofDmIoctl:]
}

func TestMessageEncoding(t *testing.T) {
	m := dmMessage{name: rootDisk(idA).name(), uuid: rootDisk(idA).uuid(), table: &dmTarget{8, "snapshot", "7:0 7:1 P 8"}}
	buf, err := m.encode()
	if err != nil || len(buf)*8 != dmBufferSize {
		t.Fatalf("%d words, %v", len(buf), err)
	}
	if _, err := (dmMessage{name: strings.Repeat("x", 128)}).encode(); err == nil {
		t.Error("a name without room for its end was encoded")
	}
	if _, err := (dmMessage{table: &dmTarget{8, "snapshot", strings.Repeat("x", dmBufferSize)}}).encode(); err == nil {
		t.Error("a table beyond the buffer was encoded")
	}
}

func FuzzDecodeTargets(f *testing.F) {
	f.Add(encoded(f, dmTarget{8, "snapshot", "7:0 7:1 P 8"}), uint32(1))
	f.Add([]byte{}, uint32(3))
	f.Add(bytes.Repeat([]byte{0xff}, 80), uint32(2))
	f.Fuzz(func(t *testing.T, raw []byte, count uint32) {
		got, err := decodeTargets(raw, count%64)
		if err == nil && len(got) != int(count%64) {
			t.Errorf("%d targets of %d", len(got), count%64)
		}
	})
}
