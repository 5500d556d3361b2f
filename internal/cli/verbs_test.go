package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
)

// threeVMs is a daemon with a (running), b (stopped) and c (paused).
func threeVMs(t *testing.T) *fakeDaemon {
	d := newFakeDaemon(t)
	for n, s := range map[string]api.State{"a": api.StateRunning, "b": api.StateStopped, "c": api.StatePaused} {
		d.put(api.VM{Name: n, ID: n, State: s})
	}
	return d
}

// Every verb takes many, answers in order, and goes on after a bad one.
func TestVerbsTakeMany(t *testing.T) {
	for verb, want := range map[string]result{
		"start": {1, "c\na\n", "banger: cannot start nix: there is no VM nix\n"}, "stop": {1, "c\na\n", "banger: cannot stop nix: there is no VM nix\n"},
		"restart": {1, "c\na\n", "banger: cannot restart nix: there is no VM nix\n"}, "kill": {1, "c\na\n", "banger: cannot kill nix: there is no VM nix\n"},
		"pause": {1, "c\na\n", "banger: cannot pause nix: there is no VM nix\n"}, "resume": {1, "c\na\n", "banger: cannot resume nix: there is no VM nix\n"},
		"delete --force": {1, "c\na\n", "banger: cannot delete nix: there is no VM nix\n"},
		"set --nat":      {1, "c\na\n", "banger: cannot change nix: there is no VM nix\n"},
		"ping":           {1, "a: 2.5 ms\n", "banger: cannot reach c: VM c is paused\nhint: banger vm resume c\nbanger: cannot reach nix: there is no VM nix\n"},
	} {
		d := threeVMs(t)
		line := append(append([]string{"vm"}, strings.Fields(verb)...), "c", "nix", "a", "c")
		if got := d.banger(nil, line...); got != want {
			t.Errorf("%s: got %+v, want %+v", verb, got, want)
		}
		var answers []answer
		got := threeVMs(t).banger(nil, append(line, "--json")...)
		if err := json.Unmarshal([]byte(got.out), &answers); err != nil || len(answers) != 3 || answers[1].Error == nil || got.code != 1 {
			t.Errorf("%s --json: %v, %+v", verb, err, got)
			continue
		}
		for i, ref := range []string{"c", "nix", "a"} {
			if answers[i].Ref != ref {
				t.Errorf("%s --json: answer %d is of %s", verb, i, answers[i].Ref)
			}
		}
	}
}

func TestManyAtOnceAreBounded(t *testing.T) {
	d := newFakeDaemon(t)
	args := []string{"vm", "stop"}
	want := ""
	for i := range 4 * atOnce {
		n := fmt.Sprintf("vm-%d", i)
		d.put(api.VM{Name: n, ID: n, State: api.StateRunning})
		args, want = append(args, n), want+n+"\n"
	}
	if got := d.banger(nil, args...); got != (result{0, want, ""}) {
		t.Errorf("got %+v", got)
	}
}

func TestAskedAboutGuests(t *testing.T) {
	d := threeVMs(t)
	for line, want := range map[string]result{
		"vm health a":            {0, "NAME  PHASE  MS   KERNEL  INIT        AGENT\na     ready  2.5  6.1     /sbin/init  v9\n", ""},
		"vm health b":            {1, "", "banger: cannot reach b: VM b is stopped\n"},
		"vm ports a":             {0, "NAME  PROTOCOL  ADDRESS  PORT  PROCESS\na     tcp       0.0.0.0  22    sshd\n", ""},
		"vm ports c":             {1, "", "banger: cannot ask for the ports of c: VM c is paused\nhint: banger vm resume c\n"},
		"vm ping a -c 2 -i 10ms": {0, "a: 2.5 ms\na: 2.5 ms\n", ""},
	} {
		if got := d.banger(nil, strings.Fields(line)...); got != want {
			t.Errorf("%s: got %+v, want %+v", line, got, want)
		}
	}
}

func TestStats(t *testing.T) {
	d := threeVMs(t)
	head := "NAME  CPU TIME  MEMORY  LIMIT  READ  WRITTEN  RECEIVED  SENT  TASKS\n"
	if got := d.banger(nil, "vm", "stats", "a"); got != (result{0, head + "a     1.5s      64MiB   1GiB   1MiB  2MiB     3KiB      4KiB  3\n", ""}) {
		t.Errorf("got %+v", got)
	}
	if got := d.banger(nil, "vm", "stats", "b"); got.code != 1 || got.out != "" || !strings.Contains(got.err, "VM b is stopped") {
		t.Errorf("got %+v", got)
	}
	got := d.banger(nil, "vm", "stats", "a", "--watch")
	if lines := strings.Split(got.out, "\n"); got.code != 1 || len(lines) != 4 || !strings.Contains(lines[2], " 50% ") || got.err != "banger: cannot measure a: it is stopped\n" {
		t.Errorf("got %+v", got)
	}
	got = d.banger(nil, "vm", "stats", "a", "--watch", "--json")
	var s api.Stats
	if lines := strings.Split(got.out, "\n"); len(lines) != 3 || json.Unmarshal([]byte(lines[1]), &s) != nil || s.CPUMicros != 1000000 {
		t.Errorf("got %+v", got)
	}
	// All that run, by themselves.
	d.banger(nil, "vm", "stats")
	if calls := d.called(); !slices.Contains(calls, "GET /v1/vms/c/stats") || slices.Contains(calls[len(calls)-3:], "GET /v1/vms/b/stats") {
		t.Errorf("calls %v", calls)
	}
}

func TestLogsAreMadePlain(t *testing.T) {
	d := threeVMs(t)
	d.put(api.VM{Name: "f", ID: "f", State: api.StateFailed})
	for line, want := range map[string]result{
		"vm logs a":        {0, "a boots\nlogin: ", ""},
		"vm logs a --raw":  {0, "\x1b[32ma\x1b[0m boots\r\nlogin: ", ""},
		"vm logs a --json": {0, `{"text":"\u001b[32ma\u001b[0m boots\r"}` + "\n" + `{"text":"login: "}` + "\n", ""},
		"vm logs nix":      {1, "", "banger: cannot show the console of nix: there is no VM nix\n"},
		"vm logs f":        {1, "f boots\nlogin: ", "banger: cannot show the console of f: the journal is broken\n"},
	} {
		if got := d.banger(nil, strings.Fields(line)...); got != want {
			t.Errorf("%s: got %+v, want %+v", line, got, want)
		}
	}
	d.banger(nil, "vm", "logs", "a", "--since", "2026-01-02T03:04:05Z", "-n", "5", "-t")
	if calls := d.called(); calls[len(calls)-1] != "GET /v1/vms/a/logs?follow=false&lines=5&since=2026-01-02T03%3A04%3A05Z&times=true" {
		t.Errorf("calls %v", calls)
	}
}

func TestFollowingEndsBySignalAndSilently(t *testing.T) {
	d := threeVMs(t)
	for line, text := range map[string]string{"vm logs a -f": "login", "vm events -f": "crate"} {
		s := d.background(nil, strings.Fields(line)...)
		s.out.await(t, text)
		s.app.signals.deliver(syscall.SIGINT)
		if code := s.wait(t); code != 130 || strings.Contains(s.err.String(), "cancelled") {
			t.Errorf("%s: exit code %d, %q", line, code, s.err)
		}
	}
}

func TestEvents(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	got := d.banger(nil, "vm", "events", "box", "-f") // ends, since the VM is deleted
	want := regexp.MustCompile(`^\S+ \S+  0123456789ab  box  is running
\S+ \S+  0123456789ab  box  failed: killed\?
\S+ \S+  0123456789ab  crate  renamed
\S+ \S+  0123456789ab  crate  deleted
$`)
	if got.code != 0 || !want.MatchString(got.out) || got.err != "banger: some events were missed; the VMs are now:\n" {
		t.Errorf("got %+v", got)
	}
	got = d.banger(nil, "vm", "events", "--json", "--since", "7")
	var e api.Event
	if lines := strings.Split(got.out, "\n"); len(lines) != 6 || json.Unmarshal([]byte(lines[2]), &e) != nil || e.Seq != 3 {
		t.Errorf("got %+v", got)
	}
	if calls := d.called(); calls[len(calls)-1] != "GET /v1/events?follow=false&since=7" {
		t.Errorf("calls %v", calls)
	}
	if got := d.banger(nil, "vm", "events", "nix"); got != (result{1, "", "banger: cannot tell events: there is no VM nix\n"}) {
		t.Errorf("got %+v", got)
	}
}

func TestSet(t *testing.T) {
	d := threeVMs(t)
	got := d.banger(nil, "vm", "set", "a", "b", "--vcpu", "2", "--memory", "1G", "--disk", "20G", "--nat=false", "--network", "", "--restart", "always", "--idle-stop", "90m", "--autostart",
		"--cpu-weight", "1", "--io-weight", "10000", "--cpu-limit", "none", "--io-limit", "0")
	if want := (result{0, "a\nb\n", "banger: a: vcpu will hold after a restart\nhint: banger vm restart a\n"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	c := d.changes[0]
	if *c.VCPU != 2 || *c.MemoryMiB != 1024 || *c.DiskBytes != 20<<30 || *c.NAT || *c.Network != "" || *c.Restart != api.RestartAlways ||
		*c.CPUWeight != 1 || *c.IOWeight != 10000 || *c.CPULimitMillis != 0 || *c.IOLimitBytes != 0 ||
		*c.IdleStopSeconds != 5400 || !*c.Autostart || c.Name != nil || c.Image != nil || c.Kernel != nil {
		raw, _ := json.Marshal(c)
		t.Errorf("asked for %s", raw)
	}
	if got := d.banger(nil, "vm", "set", "b", "--name", "z"); got != (result{0, "z\n", ""}) {
		t.Errorf("got %+v", got)
	}
}

func TestSpecFlags(t *testing.T) {
	d := newFakeDaemon(t)
	if got := d.banger(nil, "vm", "create", "--name", "box", "--disk", "1G", "--nat", "--network", "lan", "--autostart", "--restart", "on-failure", "--idle-stop", "1h",
		"--cpu-weight", "50", "--io-weight", "200", "--cpu-limit", "1.5", "--io-limit", "20M"); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	got := d.banger(nil, "vm", "show", "box")
	for _, want := range []string{"disk          1GiB\n", "nat           true\n", "network       lan\n", "autostart     true\n", "restart       on-failure\n", "idle stop     1h0m0s\n",
		"cpu weight    50\n", "io weight     200\n", "cpu limit     1.5\n", "io limit      20MiB/s\n"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("no %q in %s", want, got.out)
		}
	}
}

func TestPrune(t *testing.T) {
	d := threeVMs(t)
	d.put(api.VM{Name: "d", ID: "d", State: api.StateStopped})
	if got := d.banger(nil, "vm", "prune", "--dry-run"); got != (result{0, "b\nd\n", ""}) {
		t.Errorf("got %+v", got)
	}
	got := d.banger(nil, "vm", "prune")
	if got.code != 2 || !strings.Contains(got.err, "no terminal to ask\nhint: give --force") || len(d.names()) != 4 {
		t.Errorf("got %+v, %v", got, d.names())
	}
	if got := d.banger(nil, "vm", "prune", "--force"); got != (result{0, "b\nd\n", ""}) || len(d.names()) != 2 {
		t.Errorf("got %+v, %v", got, d.names())
	}
	if got := d.banger(nil, "vm", "prune"); got != (result{0, "", ""}) {
		t.Errorf("nothing to prune: %+v", got)
	}
}

func TestOperations(t *testing.T) {
	d := threeVMs(t)
	d.banger(nil, "vm", "stop", "a")
	got := d.banger(nil, "operation", "list")
	if got.code != 0 || !regexp.MustCompile(`(?m)^op-1 +vm\.stop +a +succeeded`).MatchString(got.out) {
		t.Errorf("got %+v", got)
	}
	if got := d.banger(nil, "operation", "list", "--running", "--json"); got.out != "[]\n" {
		t.Errorf("got %+v", got)
	}
	for _, verb := range []string{"show", "watch"} {
		if got := d.banger(nil, "operation", verb, "op-1"); got.code != 0 || !strings.Contains(got.out, "status        succeeded\n") || !strings.Contains(got.out, "stage         starting firecracker (1 ms)\n") {
			t.Errorf("%s: got %+v", verb, got)
		}
	}
	if got := d.banger(nil, "operation", "cancel", "op-1", "op-9"); got.code != 1 || !strings.Contains(got.err, "too late") || !strings.Contains(got.err, "cannot cancel op-9") {
		t.Errorf("got %+v", got)
	}
}

// Ctrl-C ends the watching of an operation and not the operation.
func TestWatchingAnOperationDoesNotCancelIt(t *testing.T) {
	d := newFakeDaemon(t)
	d.hang = make(chan struct{})
	defer close(d.hang)
	r := d.background(nil, "vm", "create", "--name", "box")
	for len(d.names()) == 0 { // the fake has no event for that
		time.Sleep(time.Millisecond)
	}
	s := d.background(nil, "-v", "operation", "watch", "op-1")
	for strings.Count(strings.Join(d.called(), " "), "/op-1/events") < 2 { // create's, and ours
		time.Sleep(time.Millisecond)
	}
	s.app.signals.deliver(syscall.SIGINT)
	if code := s.wait(t); code != 130 || slices.Contains(d.called(), "DELETE /v1/operations/op-1") {
		t.Errorf("exit code %d, calls %v", code, d.called())
	}
	// The other way round, cancelling ends the command that waits.
	if got := d.banger(nil, "operation", "cancel", "op-1"); got != (result{0, "op-1\n", ""}) {
		t.Errorf("got %+v", got)
	}
	if code := r.wait(t); code != 1 {
		t.Errorf("exit code %d, %s", code, r.err)
	}
}

// A banger that is killed cannot delete its VM: the lease it holds does.
func TestKilledRunLeavesNoVM(t *testing.T) {
	d := newFakeDaemon(t)
	self := program(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.StartProcess(self, []string{self, "--host", "unix://" + d.socket, "vm", "run", "--rm", "--", "sh", "-c", "echo up; exec sleep 60"},
		&os.ProcAttr{Files: []*os.File{nil, w, os.Stderr}, Env: []string{"HOME=" + t.TempDir()}})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if len(d.names()) != 1 {
		t.Fatalf("VMs %v", d.names())
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = p.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for len(d.names()) > 0 {
		if time.Now().After(deadline) {
			t.Fatal("the VM is still there")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestOnlyRemovedVMsAreEphemeral(t *testing.T) {
	d := newFakeDaemon(t)
	d.banger(strings.NewReader(""), "vm", "run", "--name", "box", "--", "true")
	if vm, _ := d.find("box"); vm.Ephemeral || slices.ContainsFunc(d.called(), func(c string) bool { return strings.Contains(c, "lease") }) {
		t.Errorf("%+v, %v", vm, d.called())
	}
}

func TestUnknownCommandsGetAHint(t *testing.T) {
	d := newFakeDaemon(t)
	for line, hint := range map[string]string{
		"bogus": "see banger --help", "vmm": "did you mean banger vm?", "vm strat": "did you mean banger vm start or stats?", "vm remove": "see banger vm --help", //nolint:misspell // meant so
		"operation lsit": "did you mean banger operation list?",
	} {
		if got := d.banger(nil, strings.Fields(line)...); got.code != 2 || !strings.Contains(got.err, `unknown command "`) || !strings.Contains(got.err, "hint: "+hint+"\n") {
			t.Errorf("%s: got %+v", line, got)
		}
	}
}

func TestWrongVerbs(t *testing.T) {
	d := newFakeDaemon(t)
	for line, want := range map[string]string{
		"vm set a":                            "needs something to change",
		"vm set a b --name z":                 "--name is for one VM",
		"vm set a --name Z":                   "cannot be a name",
		"vm set a --disk lots":                "is no size",
		"vm set a --restart maybe":            "must be one of no, on-failure",
		"vm set a --idle-stop soon":           "is no duration",
		"vm set a --idle-stop -1s":            "is no duration",
		"vm set a --network A":                "cannot be a name",
		"vm set a --cpu-weight 0":             "must be 1 to 10000",
		"vm set a --io-weight 10001":          "must be 1 to 10000",
		"vm set a --cpu-limit much":           "is no number of CPUs",
		"vm set a --io-limit much":            "is no size",
		"vm stats a --watch --interval 100ms": "from 1s to 1h",
		"vm ping a -c 0":                      "must be more than 0",
		"vm logs a b":                         "no more",
		"vm logs a -n 0":                      "at least 1",
		"vm logs a --raw --json":              "exclude each other",
		"vm logs a --since yesterday":         "is no time like",
		"vm events --since -1":                "must be the number",
		"vm prune --older-than -1h":           "is not possible",
		"vm pause":                            "at least one VM",
		"operation show":                      "the id of an operation",
	} {
		got := d.banger(nil, strings.Fields(line)...)
		if got.code != 2 || !strings.Contains(got.err, want) || !strings.Contains(got.err, "hint: ") {
			t.Errorf("%s: got %+v, want %s", line, got, want)
		}
	}
	if calls := d.called(); len(calls) != 0 {
		t.Errorf("the daemon was asked: %v", calls)
	}
}

func TestParseShares(t *testing.T) {
	for in, want := range map[string]int{
		"none": 0, "0": 0, "0.01": 10, "0.5": 500, "1.234": 1234, "2": 2000, "32": 32000,
		"": -1, "0.009": -1, "0.0001": -1, "32.001": -1, "-1": -1, "NaN": -1, "Inf": -1, "1e300": -1, "0.5555": -1, "50%": -1,
	} {
		if got, err := parseCPUs(in); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("parseCPUs(%q) = %d, %v", in, got, err)
		}
	}
	for in, want := range map[string]int64{
		"none": 0, "0": 0, "1": 1 << 20, "1M": 1 << 20, "50MiB": 50 << 20, "1T": 1 << 40,
		"": -1, "1K": -1, "-1M": -1, "1.5M": -1, "1048577": -1, "2T": -1,
	} {
		if got, err := parseRate(in); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("parseRate(%q) = %d, %v", in, got, err)
		}
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"10m": now.Add(-10 * time.Minute), "2026-01-01T00:00:00Z": time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		"2026-01-01": time.Date(2026, 1, 1, 0, 0, 0, 0, time.Local), "": {}, "-1m": {}, "x": {},
	} {
		if got, err := parseSince(in, now); !got.Equal(want) || (err == nil) == want.IsZero() {
			t.Errorf("parseSince(%q) = %v, %v", in, got, err)
		}
	}
}
