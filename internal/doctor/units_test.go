package doctor

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"banger/api"
)

const etc = "/etc/systemd/system/"

func unitHost(t *testing.T) Host {
	t.Helper()
	units := map[string]string{
		etc + "bangerd.service":                     "[Service]\nUser=dev\nMemoryMax=50%\n",
		etc + "banger-vm-.service.d/10-banger.conf": "[Service]\nNoNewPrivileges=yes\n",
	}
	h := tree(t, units)
	put(t, h, "/proc/meminfo", "MemTotal:       8388608 kB\n")
	h.Units = units
	h.Run = func(context.Context, ...string) (string, error) {
		return "Id=bangerd.service\nNeedDaemonReload=no\n", nil
	}
	return h
}

func TestUnits(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(t *testing.T, h Host)
		status api.CheckStatus
		says   string
	}{
		"as installed": {func(*testing.T, Host) {}, "pass", "2 files"},
		"changed": {func(t *testing.T, h Host) {
			put(t, h, etc+"banger-vm-.service.d/10-banger.conf", "[Service]\nNoNewPrivileges=no\n")
		}, "fail", "10-banger.conf is not what"},
		"another remark": {func(t *testing.T, h Host) {
			put(t, h, etc+"bangerd.service", "# of another version\n\n[Service]\nUser=dev\nMemoryMax=50%\n")
		}, "pass", "2 files"},
		"missing": {func(t *testing.T, h Host) {
			if err := os.Remove(h.at(etc + "bangerd.service")); err != nil {
				t.Fatal(err)
			}
		}, "fail", "bangerd.service is missing"},
		"masked": {func(t *testing.T, h Host) {
			if err := os.Remove(h.at(etc + "bangerd.service")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("/dev/null", h.at(etc+"bangerd.service")); err != nil {
				t.Fatal(err)
			}
		}, "fail", "bangerd.service is not what"},
		"another is preferred": {func(t *testing.T, h Host) {
			put(t, h, "/run/systemd/system.control/bangerd.service", "")
		}, "fail", "/run/systemd/system.control/bangerd.service is used in place of"},
		"a drop-in of the same name is preferred": {func(t *testing.T, h Host) {
			put(t, h, "/run/systemd/system.control/banger-vm-.service.d/10-banger.conf", "")
		}, "fail", "system.control/banger-vm-.service.d/10-banger.conf is used in place of"},
		"one of the same name for another unit": {func(t *testing.T, h Host) {
			put(t, h, "/run/systemd/system.control/bangerd.service.d/10-banger.conf", "")
			put(t, h, "/run/systemd/system.control/10-banger.conf", "")
		}, "pass", ""},
		"a worse one does not count": {func(t *testing.T, h Host) {
			put(t, h, "/usr/lib/systemd/system/bangerd.service", "")
		}, "pass", ""},
		"writable": {func(t *testing.T, h Host) {
			if err := os.Chmod(h.at(etc+"bangerd.service"), 0o666); err != nil {
				t.Fatal(err)
			}
		}, "fail", "bangerd.service"},
	} {
		h := unitHost(t)
		c.spoil(t, h)
		check(t, name, h.units(t.Context()), c.status, c.says)
	}
	h := unitHost(t)
	h.Run = func(context.Context, ...string) (string, error) {
		return "Id=bangerd.service\nNeedDaemonReload=no\n\nNeedDaemonReload=yes\nId=banger-vm-0123456789ab.service\n\nNeedDaemonReload=yes\nId=banger-vm-exporter.service\n", nil
	}
	check(t, "not read", h.units(t.Context()), "fail", "in the files of banger-vm-0123456789ab.service")
	h.Run = nil
	check(t, "no systemctl", h.units(t.Context()), "warn", "cannot be told")
}

func TestDropIns(t *testing.T) {
	for path, c := range map[string]struct {
		text   string
		status api.CheckStatus
		says   string
	}{
		etc + "other.service.d/x.conf":                                                {"[Service]\nUser=root\n", "pass", "none"},
		etc + "bangerd.service.d/x.conf":                                              {"[Service]\nMemoryMax=1G\nCPUWeight = 50\n", "pass", "bangerd.service.d/x.conf: limits"},
		etc + "bangerd.service.d/much.conf":                                           {"[Service]\nMemoryMax=5G\n", "warn", "sets MemoryMax"},
		etc + "bangerd.service.d/remark.conf":                                         {"[Service]\n# x \\\nNoNewPrivileges=no\n", "warn", "sets NoNewPrivileges"},
		"/etc/systemd/journald@banger.conf.d/99.conf":                                 {"[Journal]\nSystemMaxUse=1T\n", "warn", "changes the journal"},
		etc + "systemd-journald@banger.service.d/x.conf":                              {"[Service]\nUser=dev\n", "warn", "sets User"},
		etc + "bangerd.service.d/group.conf":                                          {"[Service]\nSupplementaryGroups=\n", "pass", "limits"},
		etc + "bangerd.service.d/more.conf":                                           {"[Service]\nSupplementaryGroups=disk\n", "warn", "sets SupplementaryGroups"},
		"/run/systemd/system/banger-vm-.service.d/x.conf":                             {"[Service]\nNoNewPrivileges=no\n", "warn", "sets NoNewPrivileges"},
		"/usr/lib/systemd/system/service.d/x.conf":                                    {"[Service]\nDeviceAllow=/dev/sda rw\n", "warn", "sets DeviceAllow"},
		"/etc/systemd/system.control/banger-vm-0123456789ab.service.d/50-CPU.conf":    {"[Service]\nCPUQuota=50%\n", "pass", "limits"},
		etc + "banger-.service.d/x.conf":                                              {"[Service]\nMemoryDenyWriteExecute=no\n", "warn", "sets MemoryDenyWriteExecute"},
		etc + "banger-helper.socket.d/x.conf":                                         {"[Socket]\nSocketMode=0666\n", "warn", "sets SocketMode"},
		etc + "bangerd.service.d/long.conf":                                           {"[Service]\nEnvironment=A=1 \\\n  B=2\n# User=root\n;x=y\n", "warn", "sets Environment"},
		etc + "banger-vm-0123456789ab.service.d/10-banger.conf":                       {"", "warn", "may be used in place of " + etc + "banger-vm-.service.d/10-banger.conf"},
		"/usr/lib/systemd/system/banger-vm-.service.d/10-banger.conf":                 {"", "pass", "limits"}, // where ours is preferred
		etc + "banger-.service.d/10-banger.conf":                                      {"", "pass", "limits"},
		etc + "banger-vm-0123456789ab.service.d/20-banger.conf":                       {"", "pass", "limits"},
		"/run/systemd/transient/banger-vm-0123456789ab.service.d/50-DeviceAllow.conf": {"[Service]\nDeviceAllow=/dev/dm-1 rw\n", "pass", "none"},
	} {
		h := unitHost(t)
		put(t, h, path, c.text)
		check(t, path, h.dropIns(), c.status, c.says)
	}
}

// What an administrator keeps from the owner, root's systemd still reads.
func TestUnseenDropIns(t *testing.T) {
	h := unitHost(t)
	dir := "/run/systemd/system/bangerd.service.d"
	put(t, h, dir+"/x.conf", "[Service]\nUser=root\n")
	if err := errors.Join(os.Rename(h.at(dir), h.at(dir)+"x"), os.Symlink("bangerd.service.d", h.at(dir))); err != nil {
		t.Fatal(err)
	}
	check(t, "a directory that cannot be read", h.dropIns(), "warn", dir+" cannot be looked at") // too many links, also for root
}

func TestTouchy(t *testing.T) {
	got := touchy("[Service]\nUser=root\nNice=5\n\nUser=x\nSystemCallFilter=\nLimitNOFILE=5\nwhat is this\n", nil, 0)
	if !slices.Equal(got, []string{"SystemCallFilter", "User", "what is this"}) {
		t.Errorf("%q", got)
	}
	own := map[string]string{"TasksMax": "1024", "MemoryMax": "50%", "LimitCORE": "0", "LogRateLimitIntervalSec": "30s", "LogRateLimitBurst": "1000"}
	for _, c := range []struct {
		line string
		want bool
	}{
		{"TasksMax=500", false}, {"TasksMax=1025", true}, {"TasksMax=4K", true}, {"TasksMax=infinity", true}, {"TasksMax=", true}, {"TasksMax=1%", true},
		{"MemoryMax=", true}, {"MemoryMax=3G", false}, {"MemoryMax=5G", true}, {"MemoryMax=50%", false}, {"MemoryMax=49%", false},
		{"MemoryMax=99%", true}, {"MemoryMax=nan", true}, {"MemoryMax=inf", true}, {"MemoryMax=-1", true}, {"MemoryMax=G", true},
		{"MemorySwapMax=0", false}, {"MemorySwapMax=1K", true}, // of which nothing is known
		{"LimitCORE=0", false}, {"LimitCORE=infinity", true}, {"LimitCORE=1G", true},
		{"LogRateLimitIntervalSec=0", true}, {"LogRateLimitIntervalSec=1s", true}, {"LogRateLimitIntervalSec=30s", false},
		{"LogRateLimitBurst=50", false}, {"LogRateLimitBurst=0", true}, {"LogRateLimitBurst=100000000", true},
		{"# a remark \\\nNoNewPrivileges=no", true}, {"Nice=5 \\\n# User=root\n;User=root", false}, {"Nice=1 \\\nUser=root", false},
	} {
		if got := touchy("[Service]\n"+c.line+"\n", own, 8<<30); (len(got) > 0) != c.want {
			t.Errorf("%s: %q", c.line, got)
		}
	}
}

func FuzzTouchy(f *testing.F) {
	f.Add("[Service]\nUser=root\\\n\n=x\n=")
	f.Fuzz(func(t *testing.T, text string) {
		if keys := touchy(text, map[string]string{"MemoryMax": "1G"}, 1); !slices.IsSorted(keys) {
			t.Errorf("%q", keys)
		}
	})
}
