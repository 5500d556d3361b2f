//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/paths"
)

// entry is a member of a test archive.
type entry struct {
	tar.Header
	body string
}

func archive(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		if e.Mode == 0 {
			e.Mode = 0o755
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, body string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg}, body}
}

func link(name, target string, kind byte) entry {
	return entry{tar.Header{Name: name, Linkname: target, Typeflag: kind}, ""}
}

func TestBadArchivesLeaveNothing(t *testing.T) {
	before := glob(t, paths.StateDir+"/images/*")
	good := archive(t, file("etc/hosts", strings.Repeat("x", 4096)), file("etc/more", strings.Repeat("y", 4096)))
	for what, data := range map[string][]byte{
		"empty":                  {},
		"no archive":             []byte(strings.Repeat("no archive\n", 1000)),
		"cut off":                good[:len(good)/2],
		"parent in a name":       archive(t, file("../../../../etc/banger-was-here", "x")),
		"hard link out of image": archive(t, link("shadow", "../../../../etc/shadow", tar.TypeLink)),
	} {
		r := bangerIn(t, data, "image", "import", "hostile", "-")
		if r.Code == 0 || !strings.HasPrefix(r.Stderr, "banger: ") {
			t.Errorf("%s: exit %d, stderr %q", what, r.Code, r.Stderr)
		}
		if now := glob(t, paths.StateDir+"/images/*"); !slices.Equal(now, before) {
			t.Errorf("%s: left %q", what, now)
		}
	}
	// A link that would lead out ends at the image's own root, as in a chroot.
	through := archive(t, link("out", "../../../../../../../etc", tar.TypeSymlink), file("etc/x", "x"), file("out/banger-was-here", "x"))
	if r := bangerIn(t, through, "image", "import", "through", "-"); r.Code != 0 {
		t.Errorf("through a link: %+v", r)
	}
	must(t, "image", "delete", "through")
	for _, f := range []string{"/etc/banger-was-here", "/banger-was-here"} {
		if _, err := os.Lstat(f); err == nil {
			t.Errorf("%s was written", f)
		}
	}
}

func TestImportOnAFullDiskLeavesNothing(t *testing.T) {
	before := glob(t, paths.StateDir+"/images/*")
	ballast := filepath.Join(paths.StateDir, "ballast")
	t.Cleanup(func() { _ = os.Remove(ballast) })
	big := archive(t, file("big", strings.Repeat("z", 256<<20)))
	// An import may not take the room that running VMs need, whether it is
	// short from the begin or gets short on the way.
	for what, left := range map[string]int64{"from the begin": 64 << 20, "on the way": 832 << 20} {
		leaveFree(t, ballast, left)
		r := bangerIn(t, big, "image", "import", "big", "-")
		if r.Code == 0 || !strings.Contains(r.Stderr, "no space") || !strings.Contains(r.Stderr, "hint: ") {
			t.Errorf("short %s: exit %d, stderr %q", what, r.Code, r.Stderr)
		}
		if now := glob(t, paths.StateDir+"/images/*"); !slices.Equal(now, before) {
			t.Errorf("short %s: left %q", what, now)
		}
	}
	leaveFree(t, ballast, 64<<20)
	r := banger(t, "vm", "run", "--rm", "--", "true")
	if r.Code != 125 || !strings.Contains(r.Stderr, "free") || !strings.Contains(r.Stderr, "hint: ") {
		t.Errorf("vm run: exit %d, stderr %q", r.Code, r.Stderr)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if r := bangerIn(t, archive(t, file("small", "x")), "image", "import", "big", "-"); r.Code != 0 {
		t.Errorf("with room again: %+v", r)
	}
	must(t, "image", "delete", "big")
}

// leaveFree makes a file so large that only left bytes are free.
func leaveFree(t *testing.T, ballast string, left int64) {
	t.Helper()
	if err := os.Remove(ballast); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(paths.StateDir, &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-left), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestImageWithoutInit boots an image that has one program and no init: the
// agent stays pid 1, reaps, and shuts down.
func TestImageWithoutInit(t *testing.T) {
	leavesNothing(t)
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Fatal("the lab has busybox-static for this:", err)
	}
	members := []entry{file("bin/busybox", string(busybox)), file("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
		{tar.Header{Name: "root/", Typeflag: tar.TypeDir}, ""}}
	for _, applet := range []string{"sh", "cat", "sleep", "ps", "true", "sync"} {
		members = append(members, link("bin/"+applet, "busybox", tar.TypeSymlink))
	}
	if r := bangerIn(t, archive(t, members...), "image", "import", "no-init", "-"); r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	t.Cleanup(func() { must(t, "image", "delete", "no-init") })
	vm := running(t, "--image", "no-init")
	if vm.Guest == nil || vm.Guest.Init != "agent" {
		t.Errorf("guest %+v", vm.Guest)
	}
	// An orphan ends and is reaped by pid 1.
	r := banger(t, "vm", "exec", vm.Name, "--", "sh", "-c", "(sleep 0.1 &) ; sleep 1; ps")
	if r.Code != 0 || strings.Contains(r.Stdout, "Z") {
		t.Errorf("%+v", r)
	}
	must(t, "vm", "exec", vm.Name, "--", "sh", "-c", "echo kept > /root/kept")
	must(t, "vm", "stop", vm.Name)
	must(t, "vm", "start", vm.Name)
	if got := must(t, "vm", "exec", vm.Name, "--", "cat", "/root/kept"); got != "kept\n" {
		t.Errorf("got %q", got)
	}
}
