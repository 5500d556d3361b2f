package cli

import (
	"bytes"
	"strings"
	"testing"

	"banger/internal/install"
)

func TestStatusText(t *testing.T) {
	well := install.Status{Installed: true, Program: "v1", Version: "v1", Programs: "/usr/libexec/banger", Packaged: true,
		Owner: "dev", UID: 1000, UIDBase: 200000, UIDCount: 65536, Bridge: "br-fc", Network: "172.16.0.1/16",
		Socket:   &install.SocketStatus{Path: "/run/banger/bangerd.sock", Present: true, UID: 1000, Mode: "0600"},
		Services: []install.UnitStatus{{Unit: "bangerd.service", Active: "active", Enabled: "enabled", Needed: true}}, VMs: 2}
	ill := well
	ill.Program, ill.Packaged, ill.Unfinished = "v2", false, true
	ill.Socket = &install.SocketStatus{Path: "/run/banger/bangerd.sock"}
	ill.Services = []install.UnitStatus{{Unit: "bangerd.service", Active: "failed", Enabled: "masked", Needed: true}, {Unit: "banger-helper.service", Active: "inactive"}}
	ill.Changed = []install.Change{{Path: "/a\x1b[2J", What: install.ChangeContent}, {Path: "/b", What: install.ChangeGone}}
	for name, tt := range map[string]struct {
		s    install.Status
		want []string
	}{
		"nothing": {install.Status{}, []string{"installed  no\n"}},
		"left":    {install.Status{Left: []string{"/var/lib/banger", "/x"}}, []string{"installed  no\nleft       /var/lib/banger\n           /x\n"}},
		"well": {well, []string{"version    v1\nprograms   /usr/libexec/banger, from a package\n", "owner      dev (uid 1000)\n",
			"uids       200000 to 265535 for VMs\n", "(uid 1000, mode 0600)\n", "bangerd.service        active, enabled\n", "VMs        2 running\n"}},
		"ill": {ill, []string{"this banger is v2", "from banger system install\n", "bangerd.sock is not there\n", "failed, masked  <- should be active\n",
			"inactive, not there\n", "unfinished", "by hand    /a?[2J: changed\n           /b: missing\n"}},
	} {
		var out bytes.Buffer
		a := &App{Out: &out}
		if err := a.tellStatus(tt.s); err != nil {
			t.Fatal(err)
		}
		for _, want := range tt.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in\n%s", name, want, &out)
			}
		}
	}
}
