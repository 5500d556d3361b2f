package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/machine"
)

func TestParseMiB(t *testing.T) {
	for in, want := range map[string]int{
		"512": 512, "512M": 512, "512MiB": 512, "1G": 1024, "1GiB": 1024, "1.5g": 1536, " 2G ": 2048, "2048k": 2, "1": 1,
		"": 0, "0": 0, "-1": 0, "0G": 0, "lots": 0, "1.3M": 0, "1500k": 0, "5X": 0, "1e30G": 0, "99999999999": 0, "-2G": 0,
	} {
		got, err := parseMiB(in)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("parseMiB(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
}

// Wrong command lines must be refused before the daemon is asked.
func TestWrongUse(t *testing.T) {
	d := newFakeDaemon(t)
	for line, want := range map[string]struct {
		code int
		text string
	}{
		"vm run --name Foo":               {125, `"Foo" cannot be a name`},
		"vm run --name -x":                {125, `"-x" cannot be a name`},
		"vm run --name=":                  {125, `"" cannot be a name`},
		"vm run --vcpu 0":                 {125, "at least 1"},
		"vm run --memory lots":            {125, "is no size"},
		"vm run -d --rm":                  {125, "exclude each other"},
		"vm run -d -- true":               {125, "takes no command"},
		"vm run -t -T -- true":            {125, "exclude each other"},
		"vm run -w tmp -- true":           {125, "not absolute"},
		"vm run -e =x -- true":            {125, "not K=V"},
		"vm run -e A-!=x -- true":         {125, "not K=V"},
		"vm run --json -- true":           {125, "--json needs -d"},
		"vm run --no-such-flag":           {125, "unknown flag"},
		"vm exec":                         {125, "needs the name of a VM"},
		"vm exec box --bad -- true":       {125, "unknown flag"},
		"vm create --name Foo":            {2, "cannot be a name"},
		"vm stop":                         {2, "at least one VM"},
		"vm frobnicate":                   {2, "unknown command"},
		"frobnicate":                      {2, "unknown command"},
		"image import ../x -":             {2, "cannot be a name"},
		"kernel import x":                 {2, "--from is missing"},
		"--host ftp://x vm list":          {1, "as a host"},
		"--host ssh://-oProxy=x vm list":  {1, "as a host"},
		"--host ssh://u:secret@h vm list": {1, "as a host"},
	} {
		got := d.banger(strings.NewReader(""), strings.Fields(line)...)
		if got.code != want.code || !strings.Contains(got.err, want.text) || got.out != "" {
			t.Errorf("%s: got %+v, want %+v", line, got, want)
		}
		if !strings.HasPrefix(got.err, "banger: ") {
			t.Errorf("%s: stderr is %q", line, got.err)
		}
	}
	if calls := d.called(); len(calls) != 0 {
		t.Errorf("the daemon was asked: %v", calls)
	}
}

func TestFlagsOfTheCommandAreNotOurs(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	for _, args := range [][]string{
		{"vm", "exec", "box", "--", "echo", "-n", "--rm", "--"},
		{"vm", "exec", "box", "echo", "-n", "--rm", "--"},
		{"vm", "exec", "-T", "box", "-e", "A=b", "echo", "-n", "--rm", "--"},
		{"vm", "run", "--rm", "--name", "new", "echo", "-n", "--rm", "--"},
	} {
		if got := d.banger(strings.NewReader(""), args...); got.out != "--rm --" {
			t.Errorf("%v: got %+v", args, got)
		}
	}
}

func TestListAndShow(t *testing.T) {
	d := newFakeDaemon(t)
	if got := d.banger(nil, "vm", "list", "--json"); got.out != "[]\n" {
		t.Errorf("got %+v", got)
	}
	d.running("box")
	got := d.banger(nil, "ps")
	if !strings.HasPrefix(got.out, "NAME  ID            STATE    IMAGE   KERNEL  VCPU  MEMORY  ADDRESS  CREATED\nbox   0123456789ab  running  debian  host    2     512MiB  -        ") {
		t.Errorf("got %+v", got)
	}
	got = d.banger(nil, "vm", "show", "box")
	if !strings.Contains(got.out, "state         running\n") || strings.Contains(got.out, "reason") {
		t.Errorf("got %+v", got)
	}
	var vm api.VM
	if err := json.Unmarshal([]byte(d.banger(nil, "vm", "show", "box", "--json").out), &vm); err != nil || vm.Name != "box" {
		t.Errorf("%v: %+v", err, vm)
	}
	d.put(api.VM{ID: "ffffffffffff", Name: "web", State: api.StateStopped, Timing: []api.PhaseTime{{Phase: api.PhaseTotal, Milliseconds: 5}}})
	got = d.banger(nil, "vm", "show", "web", "nix", "box", "web")
	if got.code != 1 || !strings.HasPrefix(got.out, "name          web\n") || strings.Count(got.out, "\n\nname          box\n") != 1 ||
		strings.Count(got.out, "name ") != 2 || got.err != "banger: cannot show nix: there is no VM nix\n" {
		t.Errorf("got %+v", got)
	}
	if got = d.banger(nil, "vm", "show", "web", "box", "--timing"); !strings.HasPrefix(got.out, "web\nPHASE  MS\ntotal  5.0\n\nbox\n") {
		t.Errorf("got %+v", got)
	}
	var answers []answer
	if err := json.Unmarshal([]byte(d.banger(nil, "vm", "show", "web", "nix", "--json").out), &answers); err != nil ||
		len(answers) != 2 || answers[0].VM.Name != "web" || answers[1].Error == nil || answers[1].Ref != "nix" {
		t.Errorf("%v: %+v", err, answers)
	}
	got = d.banger(nil, "vm", "show", "nix")
	if got.code != 1 || got.err != "banger: cannot show nix: there is no VM nix\n" {
		t.Errorf("got %+v", got)
	}
}

func TestTimingIsATable(t *testing.T) {
	d := newFakeDaemon(t)
	d.put(api.VM{ID: vmID, Name: "box", Timing: []api.PhaseTime{{Phase: "preflight", Milliseconds: 1.25}, {Phase: "firecracker_launch", Milliseconds: 100}, {Phase: api.PhaseTotal, Milliseconds: 101.3}}})
	want := "PHASE               MS\npreflight           1.2\nfirecracker_launch  100.0\ntotal               101.3\n"
	if got := d.banger(nil, "vm", "show", "box", "--timing"); got.out != want {
		t.Errorf("got %q, want %q", got.out, want)
	}
}

func TestManyAnswerInOrder(t *testing.T) {
	d := newFakeDaemon(t)
	for _, n := range []string{"a", "b", "c"} {
		d.put(api.VM{Name: n, ID: n, State: api.StateStopped})
	}
	got := d.banger(nil, "vm", "start", "c", "nix", "a", "c")
	if want := (result{1, "c\na\n", "banger: cannot start nix: there is no VM nix\n"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	got = d.banger(nil, "vm", "stop", "--json", "--timeout", "1500ms", "a", "nix")
	var answers []answer
	if err := json.Unmarshal([]byte(got.out), &answers); err != nil || len(answers) != 2 ||
		answers[0].Operation.Status != api.OperationSucceeded || answers[1].Error.Code != api.CodeNotFound {
		t.Errorf("%v: %s", err, got.out)
	}
	if !slices.Contains(d.called(), "POST /v1/vms/a/stop?timeout=2") {
		t.Errorf("calls %v", d.called())
	}
}

func TestDeleteRunning(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	got := d.banger(strings.NewReader("y\n"), "vm", "delete", "box")
	if want := (result{1, "", "banger: cannot delete box: VM box is running\nhint: add --force\n"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := d.banger(nil, "vm", "delete", "-f", "box"); got != (result{0, "box\n", ""}) {
		t.Errorf("got %+v", got)
	}
}

func TestCreateVerbosely(t *testing.T) {
	d := newFakeDaemon(t)
	got := d.banger(nil, "-v", "vm", "create", "--name", "box")
	if got.code != 0 || got.out != "box\n" || got.err != "banger: starting firecracker (1 ms)\n" {
		t.Errorf("got %+v", got)
	}
}

func TestImport(t *testing.T) {
	d := newFakeDaemon(t)
	if got := d.banger(strings.NewReader("tar"), "image", "import", "deb", "-"); got != (result{0, "deb\n", ""}) || d.inputs["op-1"] != "tar" {
		t.Errorf("got %+v", got)
	}
	file := filepath.Join(t.TempDir(), "bad.tar")
	if err := os.WriteFile(file, []byte("bad"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := d.banger(nil, "image", "import", "deb", file); got.code != 1 || got.err != "banger: cannot import image deb: that is no archive\n" {
		t.Errorf("got %+v", got)
	}
	if got := d.banger(nil, "image", "import", "deb", "/no/such/file"); got.code != 1 || !strings.Contains(got.err, "no such file") {
		t.Errorf("got %+v", got)
	}
}

// failing is an input that breaks in the middle.
type failing struct{ n int }

func (f *failing) Read(p []byte) (int, error) {
	if f.n++; f.n > 3 {
		return 0, os.ErrClosed
	}
	return len(p), nil
}

func TestImportOfABrokenInputIsCancelled(t *testing.T) {
	d := newFakeDaemon(t)
	got := d.banger(&failing{}, "image", "import", "deb", "-")
	if got.code != 1 || got.err != "banger: cannot import image deb: file already closed\n" {
		t.Errorf("got %+v", got)
	}
	if !slices.Contains(d.called(), "DELETE /v1/operations/op-1") {
		t.Errorf("not cancelled: %v", d.called())
	}
}

func TestVersionAndDoctor(t *testing.T) {
	d := newFakeDaemon(t)
	got := d.banger(nil, "version")
	if want := "banger   dev (API 1)\nbangerd  v9 (API 1) at unix://" + d.socket + ", for me\n"; got.out != want || got.code != 0 {
		t.Errorf("got %+v, want %q", got, want)
	}
	got = d.banger(nil, "doctor")
	if got.code != 1 || !strings.Contains(got.out, "pass  kvm                  works\n") || !strings.Contains(got.out, "fix: update\n") ||
		strings.Contains(got.out, "no VM runs without") {
		t.Errorf("got %+v", got)
	}
}

func TestDoctorMends(t *testing.T) {
	d := newFakeDaemon(t)
	d.checks = []api.Check{{ID: "bridge", Status: "pass", Found: "is there"},
		{ID: "leftovers", Status: "fail", Found: "a tap", Repair: "remove the tap"}}
	got := d.banger(nil, "doctor")
	if got.code != 2 || slices.Contains(d.called(), "POST /v1/doctor/repair") {
		t.Errorf("without --fix: %+v", got)
	}
	got = d.banger(nil, "doctor", "--fix", "--json")
	var checks []api.Check
	if err := json.Unmarshal([]byte(got.out), &checks); err != nil {
		t.Fatalf("%v: %+v", err, got)
	}
	if i := slices.IndexFunc(checks, func(c api.Check) bool { return c.ID == "leftovers" }); i < 0 || checks[i].Status != "pass" || len(checks) != 3 {
		t.Errorf("after it: %+v", checks)
	}
	if !strings.Contains(got.err, "leftovers: going to remove the tap\nbanger: leftovers: now pass: none\n") {
		t.Errorf("said %q", got.err)
	}
	d.checks = d.checks[:1]
	if got := d.banger(nil, "doctor", "--fix"); !strings.Contains(got.err, "nothing that can be mended") {
		t.Errorf("nothing to mend: %+v", got)
	}
}

func TestWorst(t *testing.T) {
	for want, all := range map[api.CheckStatus][]api.CheckStatus{
		api.CheckPass: {api.CheckPass},
		api.CheckWarn: {api.CheckPass, "newer", api.CheckPass},
		api.CheckFail: {api.CheckWarn, api.CheckFail, api.CheckPass},
	} {
		var checks []api.Check
		for _, s := range all {
			checks = append(checks, api.Check{Status: s})
		}
		if got := worst(checks); got != want {
			t.Errorf("%v: %s, want %s", all, got, want)
		}
	}
}

func TestDaemonOfAnotherAge(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	for header, text := range map[string]string{"0": "bangerd is older", "2": "banger is older"} {
		d.apiHeader = header
		for _, line := range []string{"vm list", "vm exec box -- true", "version", "vm run -d"} {
			got := d.banger(strings.NewReader(""), strings.Fields(line)...)
			if got.code == 0 || !strings.Contains(got.err, text) || !strings.Contains(got.err, "hint: ") {
				t.Errorf("API %s, %s: got %+v", header, line, got)
			}
		}
		if got := d.banger(nil, "doctor"); got.code != 2 || !strings.Contains(got.out, text) {
			t.Errorf("API %s, doctor: got %+v", header, got)
		}
	}
}

func TestDaemonDown(t *testing.T) {
	d := newFakeDaemon(t)
	d.stop()
	got := d.banger(nil, "--host", "unix:///no/such/place/d.sock", "vm", "list")
	if got.code != 1 || !strings.Contains(got.err, "there is no socket") || !strings.Contains(got.err, "systemctl start") {
		t.Errorf("got %+v", got)
	}
	begun := time.Now()
	got = d.banger(nil, "doctor")
	if got.code != 2 || !strings.HasPrefix(got.out, "fail  daemon") || strings.Count(got.out, "\nfail") != 0 || time.Since(begun) > 10*time.Second {
		t.Errorf("got %+v after %v", got, time.Since(begun))
	}
}

func TestDaemonStarting(t *testing.T) {
	d := newFakeDaemon(t)
	d.stop()
	s := d.background(nil, "vm", "list", "--json")
	time.AfterFunc(200*time.Millisecond, func() { d.listen() })
	if code := s.wait(t); code != 0 || s.out.String() != "[]\n" {
		t.Errorf("exit code %d, %q, %q", code, s.out, s.err)
	}
}

func TestCompletionOffersNames(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	if got := d.banger(nil, "__complete", "vm", "exec", ""); !strings.HasPrefix(got.out, "box\n:4") {
		t.Errorf("got %+v", got)
	}
	d.stop()
	_ = os.Remove(filepath.Dir(d.socket))
	if got := d.banger(nil, "__complete", "--host", "unix:///no/such/d.sock", "vm", "exec", ""); !strings.HasPrefix(got.out, ":4") {
		t.Errorf("got %+v", got)
	}
}

// Every command explains itself with an example or is a group.
func TestHelp(t *testing.T) {
	d := newFakeDaemon(t)
	for _, line := range []string{"vm", "vm run", "vm exec", "image import", "kernel import", "machine init", "system install", "doctor", ""} {
		got := d.banger(nil, append(strings.Fields(line), "--help")...)
		if got.code != 0 || !strings.Contains(got.out, "banger "+line) || got.err != "" {
			t.Errorf("%s: got %+v", line, got)
		}
	}
	if got := d.banger(nil, "vm", "exec", "box", "--help"); got.code != 0 || !strings.Contains(got.out, "Usage:") {
		t.Errorf("got %+v", got)
	}
}

func TestPlain(t *testing.T) {
	if got := plain("a\x1b[2Jb\tc\nd\u009b\x00é"); got != "a?[2Jb\tc\nd??é" {
		t.Errorf("got %q", got)
	}
}

func TestResolveHost(t *testing.T) {
	for name, tc := range map[string]struct {
		flag, env      string
		local, machine bool
		want           string // the client's host, or the error
	}{
		"local by default":     {"", "", true, true, "unix:///run/banger/bangerd.sock"},
		"a machine instead":    {"", "", false, true, "machine"},
		"nothing anywhere":     {"", "", false, false, "unix:///run/banger/bangerd.sock"},
		"environment":          {"", "ssh://lab", true, true, "ssh://lab"},
		"flag wins":            {"unix:///x.sock", "ssh://lab", true, true, "unix:///x.sock"},
		"local though absent":  {"local", "", false, true, "unix:///run/banger/bangerd.sock"},
		"machine by will":      {"machine", "", true, true, "machine"},
		"machine by name":      {"machine:two", "", true, true, "machine:two"},
		"machine never made":   {"machine:two", "", true, false, "cannot reach machine:two: it was never made"},
		"machine without name": {"machine:", "", true, true, `cannot use "machine:" as a host: the machine has no name`},
		"ssh with all":         {"ssh://me@lab:2222", "", true, true, "ssh://me@lab:2222"},
		"unknown scheme":       {"tcp://lab", "", true, true, `cannot use "tcp://lab" as a host`},
		"a bare word":          {"lab", "", true, true, `cannot use "lab" as a host`},
		"a path in ssh":        {"ssh://lab/x", "", true, true, `cannot use "ssh://lab/x" as a host`},
		"a bad port":           {"ssh://lab:ab", "", true, true, `cannot use "ssh://lab:ab" as a host`},
	} {
		t.Run(name, func(t *testing.T) {
			w := world{
				localExists: func() bool { return tc.local },
				machineState: func(string) (machine.State, error) {
					if tc.machine {
						return machine.Running, nil
					}
					return machine.Absent, nil
				},
				machineArgv: func(string) ([]string, error) { return []string{"ssh"}, nil },
			}
			c, err := resolveHost(tc.flag, func(string) string { return tc.env }, w)
			got := ""
			if err != nil {
				got = err.Error()
			} else {
				got = c.Host()
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}
