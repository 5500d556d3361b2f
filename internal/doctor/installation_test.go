package doctor

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/installed"
	"banger/internal/paths"
)

const lib = "/usr/local/libexec/banger/"

// vmmHost has two programs that are copies of one of this machine's.
func vmmHost(t *testing.T, program string) Host {
	t.Helper()
	raw, err := os.ReadFile(program)
	if err != nil {
		t.Skip(err)
	}
	files := map[string]string{lib + "firecracker": string(raw), lib + "jailer": string(raw)}
	for _, name := range services {
		files[paths.LibexecDir+"/"+name] = string(raw)
	}
	h := tree(t, files)
	h.Record = installed.Record{Firecracker: lib + "firecracker", Jailer: lib + "jailer"}
	return h
}

func TestPrograms(t *testing.T) {
	dynamic := "/usr/bin/env"
	check(t, "dynamic", vmmHost(t, dynamic).programs(), "warn", "firecracker and /usr")
	for name, c := range map[string]struct {
		spoil func(h Host) error
		says  string
	}{
		"writable":   {func(h Host) error { return os.Chmod(h.at(lib+"jailer"), 0o775) }, "jailer can be written"},
		"the helper": {func(h Host) error { return os.Chmod(h.at(paths.LibexecDir+"/banger-helper"), 0o757) }, "banger-helper can be written"},
		"directory":  {func(h Host) error { return os.Chmod(h.at("/usr/local"), 0o777) }, "/usr/local can be written"},
		"missing":    {func(h Host) error { return os.Remove(h.at(lib + "firecracker")) }, "cannot look at"},
		"a link": {func(h Host) error {
			if err := os.Rename(h.at(lib+"jailer"), h.at(lib+"other")); err != nil {
				return err
			}
			return os.Symlink("other", h.at(lib+"jailer"))
		}, "another kind"},
		"no program": {func(h Host) error { return os.WriteFile(h.at(lib+"jailer"), []byte("#!/bin/sh\n"), 0o755) }, "cannot read"},
	} {
		h := vmmHost(t, dynamic)
		if err := c.spoil(h); err != nil {
			t.Fatal(err)
		}
		check(t, name, h.programs(), "fail", c.says)
	}
	h := vmmHost(t, dynamic)
	h.RootUID++
	check(t, "somebody's", h.programs(), "fail", "not to root")
}

func TestSockets(t *testing.T) {
	make := func(t *testing.T) Host {
		t.Helper()
		// Sockets have short paths only.
		dir, err := os.MkdirTemp("", "b") //nolint:usetesting // the path of t.TempDir may be too long
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		h := Host{Root: dir, RootUID: os.Getuid(), Record: installed.Record{UID: os.Getuid(), Owner: "dev"}}
		for _, path := range []string{paths.DaemonSocket, paths.HelperSocket} {
			put(t, h, filepath.Dir(path)+"/", "")
			l, err := net.Listen("unix", h.at(path))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			if err := os.Chmod(h.at(path), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return h
	}
	check(t, "as made", make(t).sockets(), "pass", "dev alone")
	for says, spoil := range map[string]func(h Host) error{
		"has mode 0666":      func(h Host) error { return os.Chmod(h.at(paths.HelperSocket), 0o666) },
		"has mode 0660":      func(h Host) error { return os.Chmod(h.at(paths.DaemonSocket), 0o660) },
		"cannot look at":     func(h Host) error { return os.Remove(h.at(paths.HelperSocket)) },
		"put another socket": func(h Host) error { return os.Chmod(h.at(paths.HelperRunDir), 0o777) },
		"is no socket": func(h Host) error {
			if err := os.Remove(h.at(paths.HelperSocket)); err != nil {
				return err
			}
			return os.WriteFile(h.at(paths.HelperSocket), nil, 0o600)
		},
	} {
		h := make(t)
		if err := spoil(h); err != nil {
			t.Fatal(err)
		}
		check(t, says, h.sockets(), "fail", says)
	}
	h := make(t)
	h.Record.UID++
	check(t, "another owner's", h.sockets(), "fail", "want 0600 and dev")
}

func TestVersions(t *testing.T) {
	h := Host{Record: installed.Record{Version: "v2"}}
	check(t, "same", h.Versions("v2", "v2"), "pass", "v2")
	check(t, "old helper", h.Versions("v2", "v1"), "warn", "helper is v1")
	check(t, "old both", h.Versions("v1", "v1"), "warn", "v2 is installed")
	check(t, "no VM", Agents("v2", nil), "pass", "of 0 running")
	check(t, "agents", Agents("v2", map[string]string{"a": "v2", "b": "v1"}), "warn", "b (v1)")
	many := map[string]string{}
	for c := 'a'; c < 'a'+12; c++ {
		many[string(c)] = "v1"
	}
	check(t, "many", Agents("v2", many), "warn", "and 4 more")
}
