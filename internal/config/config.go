// Package config reads /etc/banger/config.toml, what an administrator may
// choose. Every key has a default, so the file may be absent or empty; a key
// that is not known, or a value out of its range, is an error that names the
// line, because a setting that is silently ignored is worse than no setting.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// Config is the configuration with all defaults filled in.
type Config struct {
	LogLevel      slog.Level
	DefaultImage  string
	DefaultKernel string
	// AutoStopStaleAfter stops VMs that nobody has used for so long, unless
	// they say else; 0 = never.
	AutoStopStaleAfter time.Duration
	// DiskReserve is what must stay free where disks lie, in bytes.
	DiskReserve int64
	VMDefaults  VMDefaults
}

// VMDefaults is what a VM gets that asks for nothing.
type VMDefaults struct {
	VCPU         int
	MemoryMiB    int
	DiskBytes    int64 // of the work disk; 0 = none
	NAT          bool
	ImageSize    int64 // virtual size of an imported image, in bytes
	StartTimeout time.Duration
}

// Ranges of the numbers.
const (
	minVCPU, maxVCPU         = 1, 32 // Firecracker's own limit
	minMemory, maxMemory     = 128, 1 << 20
	minImage, maxImage       = 256 << 20, 16 << 40
	minDisk, maxDisk         = 64 << 20, 16 << 40
	minReserve, maxReserve   = 64 << 20, 1 << 40
	minTimeout, maxTimeout   = time.Second, time.Hour
	minStale, maxStale       = time.Minute, 10 * 365 * 24 * time.Hour
	maxFile                  = 1 << 20
	mostVCPU, mostMemory     = 4, 8192 // of what is chosen for the host's size
	leastMemory, shareOfHost = 256, 8
)

// document is the file as it is written.
type document struct {
	LogLevel           string `toml:"log_level"`
	DefaultImage       string `toml:"default_image"`
	DefaultKernel      string `toml:"default_kernel"`
	AutoStopStaleAfter string `toml:"auto_stop_stale_after"`
	DiskReserve        string `toml:"disk_reserve"`
	VMDefaults         struct {
		VCPU         int    `toml:"vcpu"`
		MemoryMiB    int    `toml:"memory_mib"`
		Disk         string `toml:"disk"`
		NAT          bool   `toml:"nat"`
		ImageSize    string `toml:"image_size"`
		StartTimeout string `toml:"start_timeout"`
	} `toml:"vm_defaults"`
}

// host is what the defaults depend on.
type host struct{ cpus, memoryMiB int }

// Load reads the file at path. A file that does not exist means the defaults.
func Load(path string) (Config, error) {
	h, err := thisHost()
	if err != nil {
		return Config{}, err
	}
	return load(path, h)
}

func load(path string, h host) (Config, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return parse("", h)
	}
	if err != nil {
		return Config{}, fmt.Errorf("cannot read configuration: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return Config{}, fmt.Errorf("cannot read configuration: %s is not a regular file of at most %d bytes", path, maxFile)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("cannot read configuration: %w", err)
	}
	c, err := parse(string(raw), h)
	if err != nil {
		return Config{}, fmt.Errorf("cannot use %s: %w", path, err)
	}
	return c, nil
}

func thisHost() (host, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return host{}, fmt.Errorf("cannot tell how much memory this host has: %w", err)
	}
	return host{cpus: runtime.NumCPU(), memoryMiB: int(si.Totalram * uint64(si.Unit) >> 20)}, nil
}

func defaults(h host) document {
	d := document{LogLevel: "info", DefaultImage: "debian", DefaultKernel: "host",
		AutoStopStaleAfter: "0s", DiskReserve: "512MiB"}
	d.VMDefaults.Disk = "0"
	d.VMDefaults.VCPU = max(minVCPU, min(mostVCPU, h.cpus/4))
	d.VMDefaults.MemoryMiB = max(leastMemory, min(mostMemory, h.memoryMiB/shareOfHost))
	d.VMDefaults.ImageSize = "32GiB"
	d.VMDefaults.StartTimeout = "120s"
	return d
}

func parse(text string, h host) (Config, error) {
	d := defaults(h)
	meta, err := toml.Decode(text, &d)
	if err != nil {
		return Config{}, err // says line and key
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return Config{}, fmt.Errorf("%sunknown key %s", lineOf(text, unknown[0]), unknown[0])
	}
	c, err := d.check()
	if bad, ok := errors.AsType[*badValue](err); ok {
		return Config{}, fmt.Errorf("%s%w", lineOf(text, bad.key), bad)
	}
	return c, err
}

// badValue tells what a person has to change.
type badValue struct {
	key     toml.Key
	value   any
	allowed string
}

func (e *badValue) Error() string {
	return fmt.Sprintf("%s = %#v is not allowed, want %s", e.key, e.value, e.allowed)
}

var namePattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`) })

func (d document) check() (Config, error) {
	v := d.VMDefaults
	c := Config{DefaultImage: d.DefaultImage, DefaultKernel: d.DefaultKernel,
		VMDefaults: VMDefaults{VCPU: v.VCPU, MemoryMiB: v.MemoryMiB}}
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	var ok bool
	if c.LogLevel, ok = levels[d.LogLevel]; !ok {
		return c, bad("debug, info, warn or error", d.LogLevel, "log_level")
	}
	const names = "a name of at most 63 letters a-z, digits, dots, hyphens and underscores"
	if !namePattern().MatchString(d.DefaultImage) {
		return c, bad(names, d.DefaultImage, "default_image")
	}
	if !namePattern().MatchString(d.DefaultKernel) {
		return c, bad(names, d.DefaultKernel, "default_kernel")
	}
	if v.VCPU < minVCPU || v.VCPU > maxVCPU {
		return c, bad(fmt.Sprintf("%d to %d", minVCPU, maxVCPU), v.VCPU, "vm_defaults", "vcpu")
	}
	if v.MemoryMiB < minMemory || v.MemoryMiB > maxMemory {
		return c, bad(fmt.Sprintf("%d to %d", minMemory, maxMemory), v.MemoryMiB, "vm_defaults", "memory_mib")
	}
	var err error
	if c.AutoStopStaleAfter, err = time.ParseDuration(d.AutoStopStaleAfter); err != nil ||
		c.AutoStopStaleAfter != 0 && (c.AutoStopStaleAfter < minStale || c.AutoStopStaleAfter > maxStale) {
		return c, bad(`a duration of at least "1m", or "0s" for never`, d.AutoStopStaleAfter, "auto_stop_stale_after")
	}
	if c.DiskReserve, err = units.RAMInBytes(d.DiskReserve); err != nil || c.DiskReserve < minReserve || c.DiskReserve > maxReserve {
		return c, bad(`a size from "64MiB" to "1TiB"`, d.DiskReserve, "disk_reserve")
	}
	c.VMDefaults.NAT = v.NAT
	if c.VMDefaults.DiskBytes, err = units.RAMInBytes(v.Disk); err != nil ||
		c.VMDefaults.DiskBytes != 0 && (c.VMDefaults.DiskBytes < minDisk || c.VMDefaults.DiskBytes > maxDisk) {
		return c, bad(`a size from "64MiB" to "16TiB", or "0" for none`, v.Disk, "vm_defaults", "disk")
	}
	if c.VMDefaults.ImageSize, err = units.RAMInBytes(v.ImageSize); err != nil ||
		c.VMDefaults.ImageSize < minImage || c.VMDefaults.ImageSize > maxImage {
		return c, bad(`a size from "256MiB" to "16TiB"`, v.ImageSize, "vm_defaults", "image_size")
	}
	if c.VMDefaults.StartTimeout, err = time.ParseDuration(v.StartTimeout); err != nil ||
		c.VMDefaults.StartTimeout < minTimeout || c.VMDefaults.StartTimeout > maxTimeout {
		return c, bad(`a duration from "1s" to "1h"`, v.StartTimeout, "vm_defaults", "start_timeout")
	}
	return c, nil
}

func bad(allowed string, value any, key ...string) error {
	return &badValue{key: key, value: value, allowed: allowed}
}

// refused is a TOML value whose decoding always fails, which is how the library
// can be made to tell where a key stands.
type refused struct{}

func (*refused) UnmarshalTOML(any) error { return errors.New("refused") }

// lineOf returns "line N: " for a key of the document, or "" when the key is
// not in it or cannot be found by its name.
func lineOf(text string, key toml.Key) string {
	t := reflect.TypeFor[refused]()
	for _, part := range slices.Backward(key) {
		t = reflect.StructOf([]reflect.StructField{{
			Name: "Field", Type: t, Tag: reflect.StructTag("toml:" + strconv.Quote(part)),
		}})
	}
	_, err := toml.Decode(text, reflect.New(t).Interface())
	if at, ok := errors.AsType[toml.ParseError](err); ok && at.Position.Line > 0 {
		return fmt.Sprintf("line %d: ", at.Position.Line)
	}
	return ""
}
