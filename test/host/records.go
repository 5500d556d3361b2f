package host

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"banger/internal/paths"
)

// Slots is the helper's registry: who has which number.
func Slots(t testing.TB) map[string]int {
	t.Helper()
	var file struct{ Slots map[string]int }
	if err := json.Unmarshal([]byte(Read(t, paths.HelperDir+"/slots.json")), &file); err != nil {
		t.Fatal(err)
	}
	return file.Slots
}

// Images lists what lies where images are kept.
func Images(t testing.TB) []string { return Glob(t, paths.StateDir+"/images/*") }

// Resolves asks bangerd's name server for a VM's name.
func Resolves(t testing.TB, name string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
	defer cancel()
	server := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", "127.0.0.1:10053")
	}}
	_, err := server.LookupNetIP(ctx, "ip4", name+".vm.")
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return false
	}
	if err != nil {
		t.Fatalf("cannot ask for %s.vm: %v", name, err)
	}
	return true
}

// Journal is the end of what the services said.
func Journal(lines int) string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "--lines="+strconv.Itoa(lines), "--output=short-precise",
		"--unit=bangerd.service", "--unit=banger-helper.service").CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// WriteTiny writes the archive of an image with busybox, and without an init.
func WriteTiny(t testing.TB, path string) {
	t.Helper()
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Fatal("the lab has busybox-static for this: ", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, body []byte) {
		h.Mode, h.Size = 0o755, int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Name: "bin/busybox"}, busybox)
	add(tar.Header{Name: "etc/passwd"}, []byte("root:x:0:0::/root:/bin/sh\n"))
	add(tar.Header{Name: "root/", Typeflag: tar.TypeDir}, nil)
	for _, applet := range []string{"sh", "cat", "true", "sync"} {
		add(tar.Header{Name: "bin/" + applet, Linkname: "busybox", Typeflag: tar.TypeSymlink}, nil)
	}
	if err := errors.Join(w.Close(), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// ImportTiny makes an image of it.
func ImportTiny(t testing.TB, name string) {
	t.Helper()
	file := "/tmp/banger-" + name + ".tar" // where the owner gets at it
	t.Cleanup(func() { _ = os.Remove(file) })
	WriteTiny(t, file)
	Must(t, "image", "import", name, file)
}
