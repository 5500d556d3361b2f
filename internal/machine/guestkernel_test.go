package machine

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/guestkernel"
)

// builtKernel puts a kernel into the cache.
func builtKernel(t *testing.T, c cache, name, recipe, content string, made time.Time) {
	t.Helper()
	dir := filepath.Join(c.dir, guestkernel.Prefix+name)
	if err := errors.Join(os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, guestkernel.RecipeFile), []byte(recipe+"\n"), 0o644),
		os.WriteFile(filepath.Join(dir, guestkernel.KernelFile), []byte(content), 0o644),
		os.Chtimes(dir, made, made)); err != nil {
		t.Fatal(err)
	}
}

func TestGuestKernelIsTheNewestOfItsRecipe(t *testing.T) {
	c := cache{t.TempDir()}
	if k, err := c.guestKernel(); err != nil || k != (guestKernel{}) {
		t.Errorf("in an empty cache: %+v, %v", k, err)
	}
	recipe, err := guestkernel.Recipe()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	builtKernel(t, c, "1", recipe, "old", now.Add(-time.Hour))
	builtKernel(t, c, "2", recipe, "new", now)
	builtKernel(t, c, "3", strings.Repeat("0", 64), "of another recipe", now.Add(time.Hour))
	k, err := c.guestKernel()
	if err != nil || filepath.Base(filepath.Dir(k.path)) != guestkernel.Prefix+"2" || k.hash != textHash("new") {
		t.Errorf("got %+v, %v", k, err)
	}
}

// The script is run by a shell with stand-ins for all it calls.
func TestGuestKernelBecomesTheDefault(t *testing.T) {
	const hash = "0123456789abcdef"
	for what, c := range map[string]struct {
		config, kernels string
		inUse           bool
		config2, log    string
	}{
		"first": {"#default_kernel = \"host\"\n[vm_defaults]\n", `[{"name": "host"}]`, false,
			"default_kernel = \"banger\"\n[vm_defaults]\n", "import banger"},
		"newer": {"default_kernel = \"banger\"\n", `[{"name": "banger"}]`, false,
			"default_kernel = \"banger\"\n", "delete banger|import banger"},
		"newer, the old in use": {"default_kernel = \"banger\"\n", `[{"name": "banger"}]`, true,
			"default_kernel = \"banger-01234567\"\n", "delete banger|import banger-01234567"},
		"there already": {"default_kernel = \"banger-89abcdef\"\n", `[{"name": "banger"},{"name": "banger-01234567"}]`, true,
			"default_kernel = \"banger-01234567\"\n", "delete banger"},
		"a choice of the user's": {"default_kernel = \"mine\"\n", `[]`, false,
			"default_kernel = \"mine\"\n", "import banger"},
	} {
		dir := t.TempDir()
		config := filepath.Join(dir, "config.toml")
		stub := func(name, text string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		stub("runuser", `shift 3; exec "$@"`)
		stub("systemctl", `[ "$*" = "restart bangerd.service" ]`)
		refuse := ""
		if c.inUse {
			refuse = "exit 1"
		}
		stub("banger", `case $2 in list) echo '`+c.kernels+`';; import) echo "import $3" >>`+dir+`/log;; delete) echo "delete $3" >>`+dir+`/log; `+refuse+`;; esac`)
		if err := os.WriteFile(config, []byte(c.config), 0o644); err != nil {
			t.Fatal(err)
		}
		script := strings.ReplaceAll(guestKernel{path: "x", hash: hash}.install(), "/etc/banger/config.toml", config)
		cmd := exec.CommandContext(t.Context(), "sh", "-c", "set -e\n"+script)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
		got, err := os.ReadFile(config)
		if err != nil || string(got) != c.config2 {
			t.Errorf("%s: the configuration is %q, want %q", what, got, c.config2)
		}
		log, err := os.ReadFile(filepath.Join(dir, "log"))
		if did := strings.ReplaceAll(strings.TrimSpace(string(log)), "\n", "|"); err != nil || did != c.log {
			t.Errorf("%s: did %q, want %q", what, did, c.log)
		}
	}
}

func TestInitDoesNotResizeAMachine(t *testing.T) {
	m := here(t)
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(m.path(recordFile), record{CPUs: 2, MemoryMiB: 2048}); err != nil {
		t.Fatal(err)
	}
	for _, o := range []InitOptions{{}, {CPUs: 2}, {CPUs: 2, MemoryMiB: 2048}} {
		if err := m.keepsSize(o); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, o := range []InitOptions{{CPUs: 1}, {MemoryMiB: 4096}, {CPUs: 2, MemoryMiB: 1536}, {Disposable: true}} {
		wantCode(t, m.keepsSize(o), api.CodeConflict)
	}
}

func TestArgumentsArePartOfTheKey(t *testing.T) {
	before := textHash(debootstrapArgs(nil, applianceArgs...)...)
	if after := textHash(debootstrapArgs(nil, append(applianceArgs, "--more")...)...); after == before {
		t.Error("another argument, the same key")
	}
	args := strings.Join(debootstrapArgs(nil), " ")
	if !strings.Contains(args, " bookworm") || strings.Contains(args, "--mode") {
		t.Errorf("the key covers %q", args)
	}
}
