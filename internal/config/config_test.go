package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var small = host{cpus: 2, memoryMiB: 1024}

func TestDefaults(t *testing.T) {
	for _, tt := range []struct {
		host         host
		vcpu, memory int
	}{
		{host{1, 512}, 1, 256},
		{host{4, 8192}, 1, 1024},
		{host{8, 16384}, 2, 2048},
		{host{64, 1 << 20}, 4, 8192},
	} {
		c, err := load(filepath.Join(t.TempDir(), "absent.toml"), tt.host)
		if err != nil {
			t.Fatal(err)
		}
		want := Config{LogLevel: slog.LevelInfo, DefaultImage: "debian", DefaultKernel: "host", DiskReserve: 512 << 20, VMDefaults: VMDefaults{
			VCPU: tt.vcpu, MemoryMiB: tt.memory, ImageSize: 32 << 30, StartTimeout: 2 * time.Minute}}
		if c != want {
			t.Errorf("%+v: got %+v, want %+v", tt.host, c, want)
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(`log_level = "debug"
default_image = "alpine-3.20"
default_kernel = "tiny"
auto_stop_stale_after = "2h"
disk_reserve = "1G"
[vm_defaults]
vcpu = 8
memory_mib = 4096
disk = "8G"
nat = true
image_size = "10G"
start_timeout = "5m"
`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	want := Config{LogLevel: slog.LevelDebug, DefaultImage: "alpine-3.20", DefaultKernel: "tiny", AutoStopStaleAfter: 2 * time.Hour, DiskReserve: 1 << 30, VMDefaults: VMDefaults{
		VCPU: 8, MemoryMiB: 4096, DiskBytes: 8 << 30, NAT: true, ImageSize: 10 << 30, StartTimeout: 5 * time.Minute}}
	if err != nil || c != want {
		t.Errorf("Load = %+v, %v", c, err)
	}
	if _, err := Load(filepath.Dir(path)); err == nil {
		t.Error("a directory was read")
	}
}

func TestParseRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"unknown key":       {"log_level = \"info\"\ncolour = 1\n", "line 2: unknown key colour"},
		"unknown in table":  {"[vm_defaults]\nvcpu = 1\n\ncpus = 2\n", "line 4: unknown key vm_defaults.cpus"},
		"unknown table":     {"\n[network]\nbridge = \"x\"\n", "line 2: unknown key network"},
		"dotted":            {"vm_defaults.cpu = 3", "line 1: unknown key vm_defaults.cpu"},
		"odd key":           {"\"a,b\" = 3", `unknown key "a,b"`},
		"syntax":            {"log_level = \n", "line 1"},
		"wrong type":        {"[vm_defaults]\nvcpu = \"two\"\n", "line 2"},
		"twice":             {"log_level = \"info\"\nlog_level = \"warn\"\n", "line 2"},
		"level":             {"log_level = \"loud\"\n", `line 1: log_level = "loud" is not allowed, want debug, info`},
		"stale":             {"auto_stop_stale_after = \"5s\"\n", `line 1: auto_stop_stale_after = "5s" is not allowed, want a duration of at least`},
		"reserve":           {"disk_reserve = \"1M\"\n", `line 1: disk_reserve = "1M" is not allowed`},
		"disk":              {"[vm_defaults]\ndisk = \"1M\"\n", `line 2: vm_defaults.disk = "1M" is not allowed`},
		"image":             {"default_image = \"../x\"\n", `line 1: default_image = "../x" is not allowed`},
		"kernel":            {"default_kernel = \"\"\n", `line 1: default_kernel = "" is not allowed`},
		"no vcpu":           {"[vm_defaults]\nvcpu = 0\n", "line 2: vm_defaults.vcpu = 0 is not allowed, want 1 to 32"},
		"too many vcpu":     {"[vm_defaults]\nvcpu = 33\n", "line 2: vm_defaults.vcpu = 33"},
		"little memory":     {"[vm_defaults]\nmemory_mib = 64\n", "line 2: vm_defaults.memory_mib = 64 is not allowed, want 128 to"},
		"image size":        {"[vm_defaults]\nimage_size = \"1M\"\n", `line 2: vm_defaults.image_size = "1M" is not allowed, want a size from "256MiB"`},
		"image size, text":  {"[vm_defaults]\nimage_size = \"big\"\n", `line 2: vm_defaults.image_size = "big"`},
		"timeout":           {"[vm_defaults]\nstart_timeout = \"2h\"\n", `line 2: vm_defaults.start_timeout = "2h" is not allowed, want a duration`},
		"timeout, no unit":  {"[vm_defaults]\nstart_timeout = \"5\"\n", `line 2: vm_defaults.start_timeout = "5"`},
		"timeout, negative": {"[vm_defaults]\nstart_timeout = \"-5s\"\n", `line 2: vm_defaults.start_timeout = "-5s"`},
	} {
		c, err := parse(tt.text, small)
		if err == nil {
			t.Errorf("%s: accepted as %+v", name, c)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %q does not say %q", name, err, tt.want)
		}
	}
}

func TestTemplateShowsDefaults(t *testing.T) {
	want, err := parse("", small)
	if err != nil {
		t.Fatal(err)
	}
	text := template(small)
	active := regexp.MustCompile(`(?m)^#(\w+ = )`).ReplaceAllString(text, "$1")
	if strings.Count(active, " = ") != 11 {
		t.Errorf("the template does not name all keys:\n%s", active)
	}
	for _, text := range []string{text, active} {
		if got, err := parse(text, host{64, 1 << 20}); text == active && (err != nil || got != want) {
			t.Errorf("parse = %+v, %v, want %+v", got, err, want)
		} else if err != nil {
			t.Error(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("log_level = \"info\"\n")
	f.Add("[vm_defaults]\nvcpu = 0\n")
	f.Add("[[vm_defaults]]\nvcpu.a = 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse(text, small)
		if err == nil && (c.VMDefaults.VCPU < 1 || c.VMDefaults.ImageSize < 1 || c.VMDefaults.StartTimeout <= 0) {
			t.Errorf("accepted %+v", c)
		}
	})
}
