package cli

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"banger/api"
	"banger/client"
)

// TestMain lets the test binary be banger when it is called so: the tests here
// run the real program, with real signals and pipes.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "banger" {
		os.Exit(Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// program is the test binary under the name by which it is banger.
func program(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "banger")
	if err := os.Symlink(self, name); err != nil {
		t.Fatal(err)
	}
	return name
}

// shell runs a script that calls banger, with a daemon at $SOCK that has a
// running VM box, and an ssh that reaches it whatever it is told.
func shell(t *testing.T, script string) result {
	t.Helper()
	d := newFakeDaemon(t)
	d.running("box")
	bin := filepath.Dir(program(t))
	ssh := "#!/bin/sh\necho \"$@\" >>" + bin + "/ssh.log\nexec banger --host unix://" + d.socket + " dial-stdio\n"
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(ssh), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(bin, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Dir = bin
	cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "SOCK=" + d.socket, "GORACE=atexit_sleep_ms=0", "BANGER_HOST=unix://" + d.socket,
		"HOME=" + bin, "XDG_DATA_HOME=" + bin + "/data", "XDG_RUNTIME_DIR=" + bin + "/run"}
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

func TestProgram(t *testing.T) {
	for name, tc := range map[string]struct {
		script   string
		code     int
		out, err string // regular expressions
	}{
		"streams": {`banger vm exec box -- sh -c 'echo out; echo err >&2; exit 7'`, 7, `out\n`, `err\n`},
		"stdin":   {`head -c 3000000 /dev/zero | banger vm exec box -- wc -c`, 0, ` *3000000\n`, ``},
		"failure": {`banger vm exec nix -- true`, 125, ``, `banger: cannot run a command in nix: there is no VM nix\n`},
		"early reader": {`{ banger vm run --rm --name new -- yes; echo code $? >&2; } | head -n 1; banger vm list | wc -l`,
			0, `y\n *2\n`, `code 141\n`},
		"terminate": {`mkfifo ready; banger vm run --rm --name new -- sh -c 'echo up; exec sleep 60' >ready & read up <ready; kill -TERM $!; wait $!; echo $?; banger vm list | wc -l`,
			0, `143\n *2\n`, ``},
		"hangup ignored": {`mkfifo ready; trap '' HUP; banger vm exec box -- sh -c 'echo up; read x; exit 3' >ready </dev/null & read up <ready; kill -HUP $!; wait $!; echo $?`,
			0, `3\n`, ``},
		"help":        {`banger`, 0, `(?s).*banger vm run --rm -- uname -a.*`, ``},
		"version":     {`banger --version`, 0, `banger dev\n`, ``},
		"usage":       {`banger vm list extra`, 2, ``, `banger: banger vm list takes no arguments and no more \("extra"\)\nhint: see banger vm list --help\n`},
		"ssh host":    {`export BANGER_HOST=ssh://me@lab:2222; banger vm list | grep -c running; banger vm exec box -- echo through; head -n 1 ssh.log`, 0, `1\nthrough\n-T -o ControlMaster=auto -o ControlPersist=60 -o ControlPath="\S*/run/banger/ssh-%C" -p 2222 -- me@lab banger dial-stdio\n`, ``},
		"no machine":  {`banger --host machine vm list`, 1, ``, `banger: cannot reach machine: it was never made\nhint: banger machine init\n`},
		"a machine":   {`mkdir -p data/banger/machine/default; echo {} >data/banger/machine/default/machine.json; banger --host machine vm exec box -- echo inside`, 125, ``, `banger: cannot reach machine: it is stopped\nhint: banger machine start\n`},
		"machine ssh": {`mkdir -p data/banger/machine/two; echo {} >data/banger/machine/two/machine.json; printf '#!/bin/sh\necho "$@"; exit 9' >ssh; banger machine ssh two --root -- ls -l`, 9, `-F \S*/two/ssh_config -l root -T banger-machine -- 'ls' '-l'\n`, ``},
	} {
		t.Run(name, func(t *testing.T) {
			got := shell(t, tc.script)
			if got.code != tc.code || !regexp.MustCompile(`^(?:`+tc.out+`)$`).MatchString(got.out) || !regexp.MustCompile(`^(?:`+tc.err+`)$`).MatchString(got.err) {
				t.Errorf("got %+v, want %+v", got, tc)
			}
		})
	}
}

func TestDialStdioCarriesEverything(t *testing.T) {
	d := newFakeDaemon(t)
	d.running("box")
	c := client.NewCommand("there", program(t), "--host", "unix://"+d.socket, "dial-stdio")
	t.Cleanup(c.Close)
	var out, errs strings.Builder
	a := &App{In: strings.NewReader(strings.Repeat("x", 3<<20)), Out: &out, Err: &errs, Getenv: d.env}
	a.talk, a.signals = newTalk(a.Err, a.Getenv), watchSignals()
	defer a.signals.stop()
	command := command{tty: ttyNever}
	command.exec.Argv = []string{"sh", "-c", "wc -c; exit 6"}
	err := a.exec(t.Context(), c, "box", command)
	if e, ok := errors.AsType[exitError](err); !ok || e.code != 6 || strings.TrimSpace(out.String()) != "3145728" {
		t.Errorf("got %v, %q, %q", err, out.String(), errs.String())
	}
}

func TestDialStdioSaysWhyNot(t *testing.T) {
	c := client.NewCommand("there", program(t), "--host", "unix:///no/such/d.sock", "dial-stdio")
	t.Cleanup(c.Close)
	_, err := c.VMs(t.Context())
	if err == nil || !strings.Contains(err.Error(), "cannot reach bangerd at there: banger: cannot reach bangerd: there is no socket") {
		t.Errorf("got %v", err)
	}
	if p := problemOf(err); p.Code != api.CodeUnavailable {
		t.Errorf("code %s", p.Code)
	}
}
