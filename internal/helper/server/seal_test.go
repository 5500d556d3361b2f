package server

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/paths"
)

// Root and the VM are one here; TestLabLifeAndSudden has both.
func TestSealJail(t *testing.T) {
	uid := os.Geteuid()
	sockets := func(t *testing.T, root string) {
		listen(t, root+paths.JailAPI)
		listen(t, root+paths.JailVsock)
	}
	for name, tt := range map[string]struct {
		make func(t *testing.T, root string)
		want string // of the error
	}{
		"as it should be": {func(t *testing.T, root string) {
			sockets(t, root)
			must(t, os.MkdirAll(root+"/dev/net", 0o700))
			must(t, unix.Mkfifo(root+paths.JailMetrics, 0o600))
			must(t, os.Symlink("/etc", root+"/link"))
		}, ""},
		"too early": {func(t *testing.T, root string) { listen(t, root+paths.JailAPI) }, "has no /run/vsock.sock yet"},
		"a link for a socket": {func(t *testing.T, root string) {
			listen(t, root+paths.JailAPI)
			must(t, os.Symlink("api.sock", root+paths.JailVsock))
		}, "is not what it should be"},
		"too many files": {func(t *testing.T, root string) {
			sockets(t, root)
			for i := range maxSealed {
				write(t, root+"/run/"+strconv.Itoa(i), "")
			}
		}, "too many files"},
		"too deep": {func(t *testing.T, root string) {
			sockets(t, root)
			must(t, os.MkdirAll(root+strings.Repeat("/d", maxSealDepth+1), 0o700))
		}, "too many directories"},
	} {
		t.Run(name, func(t *testing.T) {
			p := Places{Jails: t.TempDir()}
			root := p.jailRoot(idA)
			must(t, os.MkdirAll(filepath.Join(root, "run"), 0o700))
			tt.make(t, root)
			for range 2 { // it may be called again
				err := p.sealJail(idA, uid, uid+1, paths.JailAPI, paths.JailVsock)
				if !matches(err, tt.want) {
					t.Fatalf("got %v, want %q", err, tt.want)
				}
			}
			if tt.want != "" {
				return
			}
			for _, path := range []string{"", "/run", "/dev", "/dev/net"} {
				if info, err := os.Lstat(root + path); err != nil || info.Mode().Perm() != 0o710 {
					t.Errorf("%q: %v, %v", path, info.Mode(), err)
				}
			}
		})
	}
	p := Places{Jails: t.TempDir()}
	if err := p.sealJail(idA, uid, uid+1, paths.JailAPI); problem(err) != api.CodeConflict {
		t.Errorf("without a jail: %v", err)
	}
}

// matches tells whether an error says the word, or is none if none is wanted.
func matches(err error, want string) bool {
	if err == nil || want == "" {
		return err == nil && want == ""
	}
	return strings.Contains(err.Error(), want)
}

// What belongs to somebody else in a jail is not taken.
func TestSealTakesOnlyTheVMsOwn(t *testing.T) {
	f, err := os.OpenFile(t.TempDir(), unix.O_PATH, 0)
	must(t, err)
	defer f.Close()
	s := &seal{uid: os.Geteuid() + 7, left: 1}
	must(t, s.take(f)) // root's already
	if os.Geteuid() != 0 {
		return
	}
	must(t, os.Chown(procFD(f), 12345, 12345))
	if err := s.take(f); err == nil {
		t.Error("a directory of uid 12345 was taken")
	}
}
