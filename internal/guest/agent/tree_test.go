package agent

import (
	"os"
	"path/filepath"
	"testing"

	"banger/internal/guest"
)

// image makes a root directory beside a place that must not be touched.
func image(t *testing.T) (root, outside string, tr tree) {
	t.Helper()
	base := t.TempDir()
	root, outside = filepath.Join(base, "root"), filepath.Join(base, "outside")
	mkdir(t, root)
	mkdir(t, outside)
	tr, err := openTree(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.close)
	return root, outside, tr
}

func mkdir(t testing.TB, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, path string) {
	t.Helper()
	mkdir(t, filepath.Dir(path))
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, path, content string, mode os.FileMode) {
	t.Helper()
	mkdir(t, filepath.Dir(path))
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func TestWriteMakesDirectoriesAndModes(t *testing.T) {
	root, _, tr := image(t)
	f := guest.File{Path: "/a/b/secret", Mode: 0o640, Content: []byte("text")}
	for range 2 { // the second replaces the first
		if err := tr.write(f); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(root + "/a/b/secret")
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != 0o640 || st.Size() != 4 {
		t.Errorf("file has mode %v and %d bytes", st.Mode(), st.Size())
	}
	left, err := os.ReadDir(root + "/a/b")
	if err != nil || len(left) != 1 {
		t.Errorf("directory holds %v, %v", left, err)
	}
}

func TestWriteStaysInTheImage(t *testing.T) {
	for name, link := range map[string]struct{ target, at, write, lands string }{
		"absolute directory link":  {"/real", "/etc", "/etc/hosts", "/real/hosts"},
		"link out of the root":     {"../../outside", "/etc", "/etc/hosts", ""},
		"absolute link to outside": {"{outside}", "/etc", "/etc/hosts", ""},
		"link to a link":           {"/one", "/etc", "/etc/hosts", "/real/hosts"},
		"leaf link is replaced":    {"../run/stub", "/etc/resolv.conf", "/etc/resolv.conf", "/etc/resolv.conf"},
		"leaf link to outside":     {"{outside}/x", "/etc/resolv.conf", "/etc/resolv.conf", "/etc/resolv.conf"},
		"magic link":               {"/proc/self/root", "/etc", "/etc/hosts", ""},
	} {
		t.Run(name, func(t *testing.T) {
			root, outside, tr := image(t)
			mkdir(t, root+"/real")
			symlink(t, "real", root+"/one")
			if link.target[0] == '{' {
				link.target = outside + link.target[len("{outside}"):]
			}
			symlink(t, link.target, root+link.at)
			err := tr.write(guest.File{Path: link.write, Mode: 0o644, Content: []byte("x")})
			if (err == nil) != (link.lands != "") {
				t.Errorf("error is: %v", err)
			}
			if link.lands != "" {
				st, err := os.Lstat(root + link.lands)
				if err != nil || !st.Mode().IsRegular() {
					t.Errorf("%s: %v, %v", link.lands, st, err)
				}
			}
			if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
				t.Errorf("outside holds %v, %v", left, err)
			}
		})
	}
}

func TestWriteDoesNotReplaceADirectory(t *testing.T) {
	root, _, tr := image(t)
	mkdir(t, root+"/etc/hosts")
	if err := tr.write(guest.File{Path: "/etc/hosts", Mode: 0o644}); err == nil {
		t.Error("a directory was replaced")
	}
	if left, err := os.ReadDir(root + "/etc"); err != nil || len(left) != 1 {
		t.Errorf("directory holds %v, %v", left, err)
	}
}

func TestFindInit(t *testing.T) {
	for name, tt := range map[string]struct {
		build func(root, outside string)
		want  string
	}{
		"none":           {func(string, string) {}, ""},
		"plain":          {func(r, _ string) { create(t, r+"/sbin/init", "", 0o755) }, "/sbin/init"},
		"not executable": {func(r, _ string) { create(t, r+"/sbin/init", "", 0o644) }, ""},
		"a directory":    {func(r, _ string) { mkdir(t, r+"/sbin/init") }, ""},
		"absolute link": {func(r, _ string) {
			create(t, r+"/lib/systemd/systemd", "", 0o755)
			symlink(t, "/lib/systemd/systemd", r+"/sbin/init")
		}, "/sbin/init"},
		"merged usr": {func(r, _ string) {
			create(t, r+"/usr/lib/systemd/systemd", "", 0o755)
			symlink(t, "usr/lib", r+"/lib")
			symlink(t, "usr/sbin", r+"/sbin")
			symlink(t, "../lib/systemd/systemd", r+"/usr/sbin/init")
		}, "/sbin/init"},
		"dangling link, systemd": {func(r, _ string) {
			symlink(t, "/nowhere", r+"/sbin/init")
			create(t, r+"/usr/lib/systemd/systemd", "", 0o755)
		}, "/usr/lib/systemd/systemd"},
		"link out of the image": {func(r, out string) {
			create(t, out+"/init", "", 0o755)
			symlink(t, out+"/init", r+"/sbin/init")
		}, ""},
		"busybox": {func(r, _ string) {
			create(t, r+"/bin/busybox", "", 0o755)
			symlink(t, "../bin/busybox", r+"/sbin/init")
		}, "/sbin/init"},
	} {
		t.Run(name, func(t *testing.T) {
			root, outside, tr := image(t)
			tt.build(root, outside)
			got, err := tr.findInit("")
			if err != nil || got != tt.want {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestFindInitTakesTheOneAsked(t *testing.T) {
	root, _, tr := image(t)
	create(t, root+"/sbin/init", "", 0o755)
	create(t, root+"/opt/start", "", 0o755)
	if got, err := tr.findInit("/opt/start"); err != nil || got != "/opt/start" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := tr.findInit("/opt/other"); err == nil {
		t.Errorf("a missing init was accepted as %q", got)
	}
}

func TestWaitForFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vda")
	if err := waitForFile(path, 1); err == nil {
		t.Error("a missing device was found")
	}
	done := make(chan error)
	go func() { done <- waitForFile(path, deviceTimeout) }()
	create(t, path, "", 0o600)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
