package agent

import (
	"errors"
	"slices"
	"testing"
)

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	create(t, dir+"/one/tool", "#!/bin/sh\n", 0o755)
	create(t, dir+"/one/data", "", 0o644)
	create(t, dir+"/two/data", "", 0o755)
	create(t, dir+"/two/only-data", "", 0o644)
	mkdir(t, dir+"/one/folder")
	env := []string{"PATH=relative:" + dir + "/one:" + dir + "/two"}
	for name, tt := range map[string]struct {
		file, want string
		status     int
	}{
		"in PATH":                     {"tool", dir + "/one/tool", 0},
		"skips what is not a program": {"data", dir + "/two/data", 0},
		"only a plain file":           {"only-data", "", 126},
		"not there":                   {"none", "", 127},
		"empty":                       {"", "", 127},
		"absolute":                    {dir + "/one/tool", dir + "/one/tool", 0},
		"absolute, not there":         {dir + "/none", "", 127},
		"absolute, plain file":        {dir + "/one/data", "", 126},
		"absolute, directory":         {dir + "/one/folder", "", 126},
		"relative to the directory":   {"./tool", dir + "/one/tool", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := lookPath(tt.file, env, dir+"/one")
			if status := statusOf(err); status != tt.status {
				t.Fatalf("status %d, error: %v", status, err)
			}
			if err == nil && got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func statusOf(err error) int {
	if e, ok := errors.AsType[*startError](err); ok {
		return e.status
	}
	return 0
}

func TestEnvironmentLaterWins(t *testing.T) {
	as := account{name: "root", home: "/root", shell: "/bin/sh"}
	got := environment(as, "xterm", []string{"PATH=/image", "LANG=de", "X=1", "X=2"}, []string{"X=3", "TERM=dumb"})
	for _, want := range []string{"PATH=/image", "LANG=de", "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "TERM=dumb", "X=3"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
	if len(got) != 8 {
		t.Errorf("there are duplicates: %v", got)
	}
}

func TestChooseDir(t *testing.T) {
	home, image := t.TempDir(), t.TempDir()
	as := account{home: home}
	for name, tt := range map[string]struct {
		wanted, image, home, want string
		fails                     bool
	}{
		"wanted":          {image, "", home, image, false},
		"wanted is gone":  {image + "/none", "", home, "", true},
		"image's":         {"", image, home, image, false},
		"image's is gone": {"", image + "/none", home, home, false},
		"home":            {"", "", home, home, false},
		"none":            {"", "", "/nowhere", "/", false},
		"relative home":   {"", "", ".", "/", false},
	} {
		t.Run(name, func(t *testing.T) {
			as.home = tt.home
			got, err := chooseDir(tt.wanted, tt.image, as)
			if (err != nil) != tt.fails || got != tt.want {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestRebootSignal(t *testing.T) {
	for program, want := range map[string]int{"systemd": 39, "busybox": 15, "init": 2, "openrc-init": 2} {
		if got := rebootSignal(program); int(got) != want {
			t.Errorf("%s gets %d, want %d", program, got, want)
		}
	}
}
