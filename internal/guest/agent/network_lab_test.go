//go:build lab

package agent

import (
	"encoding/json"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// The process's first thread keeps the main goroutine: a test that changed it
// would change what /proc/self shows to all others.
func init() { runtime.LockOSThread() }

// ownNetwork moves the test to a network namespace that dies with its thread.
func ownNetwork(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func TestSetUpNetwork(t *testing.T) {
	ownNetwork(t)
	run(t, "ip", "link", "add", "ens7", "address", "02:fc:ac:10:00:05", "mtu", "1400", "type", "dummy")
	run(t, "ip", "link", "add", "other", "type", "dummy")
	n := guest.Network{MAC: "02:fc:ac:10:00:05", Address: "172.16.0.5/16", Gateway: "172.16.0.1"}
	for range 2 { // it may be repeated
		card, err := setUpNetwork(n)
		if err != nil || card != "ens7" {
			t.Fatalf("card %q, %v", card, err)
		}
	}
	var links []struct {
		Flags []string `json:"flags"`
		MTU   int      `json:"mtu"`
		Addrs []struct {
			Family    string `json:"family"`
			Local     string `json:"local"`
			PrefixLen int    `json:"prefixlen"`
			Broadcast string `json:"broadcast"`
			Scope     string `json:"scope"`
		} `json:"addr_info"`
	}
	out := run(t, "ip", "-j", "address", "show", "ens7")
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		t.Fatal(err)
	}
	l := links[0]
	if l.MTU != 1400 || !strings.Contains(strings.Join(l.Flags, " "), "UP") || len(l.Addrs) != 1 {
		t.Errorf("the card is %s", out)
	} else if a := l.Addrs[0]; a.Family != "inet" || a.Local != "172.16.0.5" || a.PrefixLen != 16 || a.Broadcast != "172.16.255.255" || a.Scope != "global" {
		t.Errorf("the address is %+v", a)
	}
	if out := run(t, "ip", "route", "show", "default"); out != "default via 172.16.0.1 dev ens7 proto static" {
		t.Errorf("the default route is %q", out)
	}
	if out := run(t, "ip", "-6", "address", "show", "dev", "ens7"); out != "" {
		t.Errorf("IPv6: %s", out)
	}
}

func TestCardIsWaitedFor(t *testing.T) {
	ownNetwork(t)
	if _, err := findCard([]byte{2, 0xfc, 1, 2, 3, 4}, 1); err == nil || !strings.Contains(err.Error(), "02:fc:01:02:03:04") {
		t.Errorf("error is %v", err)
	}
	run(t, "sh", "-c", "(sleep 0.3; ip link add late address 02:fc:01:02:03:04 type dummy) >/dev/null 2>&1 &")
	if l, err := findCard([]byte{2, 0xfc, 1, 2, 3, 4}, 10*time.Second); err != nil || l.Name != "late" {
		t.Errorf("card is %+v, %v", l, err)
	}
}

func TestResolvConf(t *testing.T) {
	n := guest.Network{MAC: "02:fc:ac:10:00:05", Address: "172.16.0.5/16", Gateway: "172.16.0.1", DNS: []string{"172.16.0.1"}, Search: []string{"vm"}}
	want := "nameserver 172.16.0.1\nsearch vm\n"
	for name, tt := range map[string]struct {
		link    string
		hasInit bool
		at      string // where it has to be
		kept    bool   // the link
	}{
		"none":                  {"", true, "/etc/resolv.conf", false},
		"systemd-resolved":      {"../run/systemd/resolve/stub-resolv.conf", true, "/run/systemd/resolve/stub-resolv.conf", true},
		"resolvconf":            {"/run/resolvconf/resolv.conf", true, "/run/resolvconf/resolv.conf", true},
		"no init":               {"../run/systemd/resolve/stub-resolv.conf", false, "/etc/resolv.conf", false},
		"a file of the image":   {"/usr/lib/systemd/resolv.conf", true, "/etc/resolv.conf", false},
		"into the wide":         {"../../../outside/resolv.conf", true, "/etc/resolv.conf", false},
		"itself":                {"resolv.conf", true, "/etc/resolv.conf", false},
		"two links":             {"/etc/other", true, "/run/x", true},
		"a link through proc":   {"/proc/self/root/etc/passwd", true, "/etc/resolv.conf", false},
		"a directory as a file": {"/run", true, "/etc/resolv.conf", false},
	} {
		t.Run(name, func(t *testing.T) {
			root, outside, tr := image(t)
			mkdir(t, root+"/run")
			create(t, root+"/usr/lib/systemd/resolv.conf", "theirs", 0o644)
			symlink(t, "/run/x", root+"/etc/other")
			if tt.hasInit {
				if err := unix.Mount("tmpfs", root+"/run", "tmpfs", 0, ""); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = unix.Unmount(root+"/run", unix.MNT_DETACH) })
			}
			if tt.link != "" {
				symlink(t, tt.link, root+"/etc/resolv.conf")
			}
			if err := writeNetConf(tr, n, "eth0", tt.hasInit); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(root + tt.at); string(got) != want {
				t.Errorf("%s is %q, %v", tt.at, got, err)
			}
			if _, err := os.Readlink(root + "/etc/resolv.conf"); (err == nil) != tt.kept {
				t.Errorf("the link: %v", err)
			}
			if b, err := os.ReadFile(root + "/usr/lib/systemd/resolv.conf"); string(b) != "theirs" {
				t.Errorf("the image's file is %q, %v", b, err)
			}
			if left, _ := os.ReadDir(outside); len(left) > 0 {
				t.Errorf("outside holds %v", left)
			}
			if _, err := os.Stat(root + "/run/systemd/network/00-banger.network"); (err == nil) != tt.hasInit {
				t.Errorf("networkd's file: %v", err)
			}
		})
	}
}
