package guestkernel

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// check runs the build's own check.
func check(t *testing.T, fragment, config string) (complaint string, ok bool) {
	t.Helper()
	dir := t.TempDir()
	f, c := filepath.Join(dir, "fragment"), filepath.Join(dir, "config")
	for path, text := range map[string]string{f: fragment, c: config} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "./check-config", f, c).CombinedOutput()
	return string(out), err == nil
}

func TestCheckTellsWhatKconfigDropped(t *testing.T) {
	for what, c := range map[string]struct {
		fragment, config, complaint string
	}{
		"as asked":           {"# why\n\nCONFIG_A=y\nCONFIG_N=32\nCONFIG_S=\"x y\"\n# CONFIG_OFF is not set\n", "CONFIG_S=\"x y\"\nCONFIG_N=32\n# CONFIG_OFF is not set\nCONFIG_A=y\nCONFIG_MORE=y\n", ""},
		"off and unknown":    {"CONFIG_A=y\n# CONFIG_OFF is not set\n", "CONFIG_A=y\n", ""},
		"dropped":            {"CONFIG_A=y\nCONFIG_B=y\n", "CONFIG_A=y\n", "CONFIG_B"},
		"off after all":      {"CONFIG_A=y\n", "# CONFIG_A is not set\n", "CONFIG_A"},
		"on after all":       {"# CONFIG_OFF is not set\n", "CONFIG_OFF=y\n", "CONFIG_OFF"},
		"a module":           {"CONFIG_A=y\n", "CONFIG_A=m\n", "CONFIG_A"},
		"another number":     {"CONFIG_N=32\n", "CONFIG_N=64\n", "CONFIG_N"},
		"a longer name only": {"CONFIG_A=y\n", "CONFIG_AB=y\n", "CONFIG_A"},
		"no option":          {"CONFIG_A\n", "CONFIG_A=y\n", "line 1"},
		"nothing":            {"# remark\n", "CONFIG_A=y\n", "nothing"},
	} {
		complaint, ok := check(t, c.fragment, c.config)
		if ok != (c.complaint == "") || !strings.Contains(complaint, c.complaint) {
			t.Errorf("%s: ok %v, %q; want %q", what, ok, complaint, c.complaint)
		}
	}
}

var option = regexp.MustCompile(`^(CONFIG_[A-Z0-9_a-z]+=(y|[0-9]+|"[^"]*")|# CONFIG_[A-Za-z0-9_]+ is not set)$`)

func TestFragmentNamesEachOptionOnce(t *testing.T) {
	text, err := os.ReadFile(ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if !strings.Contains(line, "CONFIG_") {
			continue
		}
		if !option.MatchString(line) {
			t.Errorf("%q is no option", line)
		}
		name, _, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(line, "# "), " is not set"), "=")
		if seen[name] {
			t.Errorf("%s is there twice", name)
		}
		seen[name] = true
	}
}

// TestBuiltKernelHasWhatTheFragmentAsks looks at what this recipe built on this
// machine, if it did.
func TestBuiltKernelHasWhatTheFragmentAsks(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache:", err)
	}
	recipe, err := Recipe()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := filepath.Glob(filepath.Join(cache, "banger", Prefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, dir := range entries {
		made, err := os.ReadFile(filepath.Join(dir, RecipeFile))
		if err != nil || strings.TrimSpace(string(made)) != recipe {
			continue
		}
		found = true
		if out, err := exec.CommandContext(t.Context(), "./check-config", ConfigFile, filepath.Join(dir, ConfigFile)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", dir, err, out)
		}
	}
	if !found {
		t.Skip("no kernel of this recipe is in the cache: make kernel")
	}
}
