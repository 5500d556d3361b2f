package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"banger/api"
	"banger/internal/kernel/decompress"
)

const (
	maxDepFile = 16 << 20
	// maxModule bounds one unpacked module; the largest here is 1 MiB.
	maxModule = 64 << 20
)

// wanted are the modules a guest needs before its root filesystem is there,
// in load order apart from what they depend on.
var wanted = []struct {
	name string
	// task completes "cannot …" where the kernel is of no use without it.
	task string
	// with is the module that makes this one worth loading; "" always.
	with string
}{
	{name: "virtio_mmio", task: "see its devices"},
	{name: "virtio_blk", task: "read its root disk"},
	{name: "crc32c_generic", with: "ext4"}, // asked for by name at mount time
	{name: "ext4", task: "mount its root filesystem"},
	{name: "virtio_net"},
	{name: "vmw_vsock_virtio_transport", task: "be reached by banger"},
	{name: "virtio_rng"},
}

// module is a kernel module and where it lies below the modules directory.
type module struct {
	name string // as lsmod shows it: '-' is '_'
	path string
}

// depEntry is a line of modules.dep.
type depEntry struct {
	module
	deps []string
}

// loadOrder returns the modules a guest needs, each behind all it depends on.
// dep and builtin are the contents of modules.dep and modules.builtin. What is
// neither there nor built in is an error if the guest cannot do without it.
func loadOrder(dep, builtin []byte) ([]module, error) {
	byName, byPath, err := parseDep(dep)
	if err != nil {
		return nil, err
	}
	in := parseBuiltin(builtin)
	o := ordering{byPath: byPath, state: map[string]int{}}
	for _, w := range wanted {
		e, found := byName[w.name]
		_, needed := byName[w.with]
		switch {
		case in[w.name] || w.with != "" && !needed:
		case found:
			if err := o.add(e); err != nil {
				return nil, err
			}
		case w.task != "":
			return nil, api.BadRequest("a guest with this kernel cannot %s: %s is neither built in nor among its modules", w.task, w.name).
				WithHint("install the complete modules of this kernel, or take another kernel")
		}
	}
	return o.out, nil
}

// ordering is a depth-first walk over dependencies.
type ordering struct {
	byPath map[string]*depEntry
	state  map[string]int
	out    []module
}

const (
	walking = iota + 1
	walked
)

func (o *ordering) add(e *depEntry) error {
	switch o.state[e.path] {
	case walked:
		return nil
	case walking:
		return api.BadRequest("modules.dep is damaged: %s depends on itself", e.name)
	}
	o.state[e.path] = walking
	for _, d := range e.deps {
		next := o.byPath[d]
		if next == nil {
			return api.BadRequest("modules.dep is damaged: %s needs %q, which it does not list", e.name, d)
		}
		if err := o.add(next); err != nil {
			return err
		}
	}
	o.state[e.path] = walked
	o.out = append(o.out, e.module)
	return nil
}

func parseDep(dep []byte) (byName, byPath map[string]*depEntry, err error) {
	byName, byPath = map[string]*depEntry{}, map[string]*depEntry{}
	for line := range bytes.Lines(dep) {
		text := strings.TrimSpace(string(line))
		if text == "" {
			continue
		}
		file, deps, ok := strings.Cut(text, ":")
		if !ok {
			return nil, nil, api.BadRequest("modules.dep is damaged: %.100q is no line of it", text)
		}
		m, err := moduleOf(file)
		if err != nil {
			return nil, nil, err
		}
		e := &depEntry{module: m, deps: strings.Fields(deps)}
		byPath[m.path] = e
		if byName[m.name] == nil {
			byName[m.name] = e
		}
	}
	return byName, byPath, nil
}

func parseBuiltin(builtin []byte) map[string]bool {
	in := map[string]bool{}
	for line := range bytes.Lines(builtin) {
		if m, err := moduleOf(strings.TrimSpace(string(line))); err == nil {
			in[m.name] = true
		}
	}
	return in
}

// moduleOf checks a path of modules.dep, which becomes part of file names, and
// derives the module's name from it.
func moduleOf(file string) (module, error) {
	base, _, ok := strings.Cut(path.Base(file), ".ko")
	name := strings.ReplaceAll(base, "-", "_")
	if !ok || !isModuleFile(file) || !fs.ValidPath(file) || !validModuleName(name) {
		return module{}, api.BadRequest("modules.dep is damaged: %.100q is no path of a module", file)
	}
	return module{name: name, path: file}, nil
}

func isModuleFile(file string) bool {
	for _, ext := range []string{".ko", ".ko.gz", ".ko.xz", ".ko.zst"} {
		if strings.HasSuffix(file, ext) {
			return true
		}
	}
	return false
}

func validModuleName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_') {
			return false
		}
	}
	return true
}

// unpackModule returns the module that r holds, decompressed if need be, and
// checks that it belongs to a kernel of that release: loading another one's
// would fail in the guest, with nobody there to see it.
func unpackModule(r io.Reader, name, release string) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read module %s: %w", name, err)
	}
	data, err := plainModule(raw)
	if err != nil {
		return nil, api.BadRequest("the module %s cannot be used: %v", name, err)
	}
	_, rest, ok := bytes.Cut(data, []byte("vermagic="))
	if !ok {
		return nil, api.BadRequest("the module %s cannot be used: it names no kernel it was made for", name)
	}
	rest = rest[:min(len(rest), 128)]
	if magic, _, _ := bytes.Cut(rest, []byte{' '}); string(magic) != release {
		return nil, api.BadRequest("the module %s was made for kernel %.64q, and the kernel is %s", name, magic, release).
			WithHint("give the modules directory of the same kernel: /lib/modules/%s", release)
	}
	return data, nil
}

func plainModule(raw []byte) ([]byte, error) {
	z, err := decompress.NewReader(decompress.Detect(raw), bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	defer z.Close() // a decoder's Close has nothing to say
	data, err := io.ReadAll(io.LimitReader(z, maxModule+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("it is damaged: %w", err)
	case len(data) > maxModule:
		return nil, errors.New("it unpacks to more than 64 MiB")
	case len(data) < elfHeaderSize:
		return nil, errors.New("it is truncated")
	}
	return data, checkIdent(data, elfTypeReloc)
}
