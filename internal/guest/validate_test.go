package guest

import (
	"encoding/json"
	"path"
	"strings"
	"testing"
)

func validIdentity() Identity {
	return Identity{
		ID:       "0123456789ab",
		Hostname: "calm-otter",
		Root:     Root{Device: "/dev/vda", FSType: "ext4"},
		SSH:      SSH{UserCA: "ca", HostKey: "key", HostCert: "cert"},
		Env:      []string{"PATH=/bin", "EMPTY=", "A=b=c"},
		WorkDir:  "/srv",
		Files:    []File{{Path: "/etc/hostname", Mode: 0o644, Content: []byte("calm-otter\n")}},
		Network: &Network{MAC: "02:fc:ac:10:00:05", Address: "172.16.0.5/16", Gateway: "172.16.0.1",
			DNS: []string{"172.16.0.1"}, Search: []string{"vm", "a.example"}},
		Mounts: []Mount{{Device: "/dev/vdb", FSType: "ext4", Path: "/root", Fill: true, Grow: true}, {Device: "/dev/vdc", FSType: "xfs", Path: "/root/data"}},
	}
}

func TestIdentityValidate(t *testing.T) {
	good := validIdentity()
	if err := good.Validate(); err != nil {
		t.Fatalf("a good document is refused: %v", err)
	}
	for name, spoil := range map[string]func(*Identity){
		"no id":                  func(d *Identity) { d.ID = "" },
		"short id":               func(d *Identity) { d.ID = "0123456789a" },
		"upper-case id":          func(d *Identity) { d.ID = "0123456789AB" },
		"id with a newline":      func(d *Identity) { d.ID = "0123456789a\n" },
		"no hostname":            func(d *Identity) { d.Hostname = "" },
		"hostname with capitals": func(d *Identity) { d.Hostname = "Calm" },
		"hostname with a slash":  func(d *Identity) { d.Hostname = "a/b" },
		"device elsewhere":       func(d *Identity) { d.Root.Device = "/etc/passwd" },
		"device climbs out":      func(d *Identity) { d.Root.Device = "/dev/../etc/passwd" },
		"no filesystem type":     func(d *Identity) { d.Root.FSType = "" },
		"filesystem type a path": func(d *Identity) { d.Root.FSType = "../ext4" },
		"relative init":          func(d *Identity) { d.Root.Init = "sbin/init" },
		"init climbs":            func(d *Identity) { d.Root.Init = "/sbin/../init" },
		"no user authority":      func(d *Identity) { d.SSH.UserCA = "" },
		"no host key":            func(d *Identity) { d.SSH.HostKey = "" },
		"no host certificate":    func(d *Identity) { d.SSH.HostCert = "" },
		"relative workdir":       func(d *Identity) { d.WorkDir = "srv" },
		"too much entropy":       func(d *Identity) { d.Entropy = make([]byte, 1025) },
		"variable without value": func(d *Identity) { d.Env = []string{"PATH"} },
		"variable without name":  func(d *Identity) { d.Env = []string{"=x"} },
		"variable with NUL":      func(d *Identity) { d.Env = []string{"A=\x00"} },
		"too many variables":     func(d *Identity) { d.Env = make([]string, maxEnv+1) },
		"relative file":          func(d *Identity) { d.Files[0].Path = "etc/hostname" },
		"file climbs":            func(d *Identity) { d.Files[0].Path = "/etc/../../x" },
		"file is the root":       func(d *Identity) { d.Files[0].Path = "/" },
		"file with trailing /":   func(d *Identity) { d.Files[0].Path = "/etc/" },
		"file mode with type":    func(d *Identity) { d.Files[0].Mode = 0o100644 },
		"file too large":         func(d *Identity) { d.Files[0].Content = make([]byte, maxFileSize+1) },
		"too many files":         func(d *Identity) { d.Files = make([]File, maxFiles+1) },
		"no hardware address":    func(d *Identity) { d.Network.MAC = "" },
		"group hardware address": func(d *Identity) { d.Network.MAC = "03:fc:ac:10:00:05" },
		"MAC in capitals":        func(d *Identity) { d.Network.MAC = "02:FC:AC:10:00:05" },
		"infiniband address":     func(d *Identity) { d.Network.MAC = "02:fc:ac:10:00:05:00:00" },
		"no prefix":              func(d *Identity) { d.Network.Address = "172.16.0.5" },
		"IPv6":                   func(d *Identity) { d.Network.Address = "fd00::5/64" },
		"prefix of nothing":      func(d *Identity) { d.Network.Address = "172.16.0.5/0" },
		"multicast address":      func(d *Identity) { d.Network.Address = "224.0.0.1/16" },
		"gateway elsewhere":      func(d *Identity) { d.Network.Gateway = "10.0.0.1" },
		"gateway is itself":      func(d *Identity) { d.Network.Gateway = "172.16.0.5" },
		"resolver by name":       func(d *Identity) { d.Network.DNS = []string{"dns.example"} },
		"resolver, more lines":   func(d *Identity) { d.Network.DNS = []string{"9.9.9.9\noptions x"} },
		"resolver with a zone":   func(d *Identity) { d.Network.DNS = []string{"fe80::1%eth0"} },
		"too many resolvers":     func(d *Identity) { d.Network.DNS = []string{"9.9.9.9", "9.9.9.9", "9.9.9.9", "9.9.9.9"} },
		"search with a space":    func(d *Identity) { d.Network.Search = []string{"a b"} },
		"search for nothing":     func(d *Identity) { d.Network.Search = []string{""} },
		"too many searches":      func(d *Identity) { d.Network.Search = []string{"a", "a", "a", "a", "a", "a", "a"} },
		"mount of a file":        func(d *Identity) { d.Mounts[0].Device = "/etc/passwd" },
		"mount of the root disk": func(d *Identity) { d.Mounts[0].Device = "/dev/vda" },
		"one disk twice":         func(d *Identity) { d.Mounts[1].Device = "/dev/vdb" },
		"mount without a type":   func(d *Identity) { d.Mounts[0].FSType = "" },
		"xfs that grows":         func(d *Identity) { d.Mounts[1].Grow = true },
		"mount over the root":    func(d *Identity) { d.Mounts[0].Path = "/" },
		"relative mount point":   func(d *Identity) { d.Mounts[0].Path = "root" },
		"mount point climbs":     func(d *Identity) { d.Mounts[0].Path = "/root/../.." },
		"mount point twice":      func(d *Identity) { d.Mounts[1].Path = "/root" },
		"mount over /proc":       func(d *Identity) { d.Mounts[0].Path = "/proc" },
		"mount below /dev":       func(d *Identity) { d.Mounts[0].Path = "/dev/shm" },
		"too many mounts":        func(d *Identity) { d.Mounts = make([]Mount, maxMounts+1) },
		"file path with NUL":     func(d *Identity) { d.Files[0].Path = "/etc/a\x00b" },
	} {
		t.Run(name, func(t *testing.T) {
			d := validIdentity()
			spoil(&d)
			if d.Validate() == nil {
				t.Error("the document is accepted")
			}
		})
	}
}

func TestValidName(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, good := range []string{"a", "0", "a-b", "a--b", long} {
		if !ValidName(good) {
			t.Errorf("%q is refused", good)
		}
	}
	for _, bad := range []string{"", "-", "-a", "a-", "A", "a_b", "a.b", "ä", "a b", "a\n", long + "a"} {
		if ValidName(bad) {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// FuzzIdentity checks what the agent relies on after Validate, for any
// document that can arrive.
func FuzzIdentity(f *testing.F) {
	seed, err := json.Marshal(validIdentity())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"id":"0123456789ab","files":[{"path":"/../x"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var d Identity
		if json.Unmarshal(raw, &d) != nil || d.Validate() != nil {
			return
		}
		if len(d.ID) != 12 || len(d.Hostname) == 0 || len(d.Hostname) > 63 {
			t.Errorf("id %q or hostname %q got through", d.ID, d.Hostname)
		}
		if path.Dir(d.Root.Device) == "/" || !strings.HasPrefix(d.Root.Device, "/dev/") {
			t.Errorf("device %q got through", d.Root.Device)
		}
		for _, file := range d.Files {
			if file.Path == "/" || file.Path[0] != '/' || strings.Contains(file.Path+"/", "/../") || strings.Contains(file.Path, "\x00") {
				t.Errorf("file %q got through", file.Path)
			}
		}
		for _, kv := range d.Env {
			if strings.IndexByte(kv, '=') <= 0 || strings.Contains(kv, "\x00") {
				t.Errorf("variable %q got through", kv)
			}
		}
	})
}

func TestExecValidate(t *testing.T) {
	good := Exec{Argv: []string{"a", ""}, Dir: "/srv/../x", Env: []string{"A=", "B=c=d"}, TTY: &TTY{Term: "xterm"}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	if err := new(Exec).Validate(); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]Exec{
		"relative directory": {Dir: "srv"},
		"NUL in directory":   {Dir: "/a\x00"},
		"NUL in argument":    {Argv: []string{"a", "b\x00"}},
		"NUL in terminal":    {TTY: &TTY{Term: "x\x00"}},
		"no variable":        {Env: []string{"A"}},
		"no name":            {Env: []string{"=a"}},
		"NUL in variable":    {Env: []string{"A=\x00"}},
		"too many variables": {Env: make([]string, maxEnv+1)},
	} {
		if bad.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
