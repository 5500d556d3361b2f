package install

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/api"
	"banger/internal/jsonhttp"
)

// importKernel gives a daemon without default kernel the host's own.
func (h *host) importKernel(ctx context.Context, importer func(ctx context.Context, kernelFile, modulesDir string) error) error {
	var kernels []api.Kernel
	if err := jsonhttp.Call(ctx, h.daemon, http.MethodGet, "http://bangerd/v1/kernels", nil, &kernels); err != nil {
		return fmt.Errorf("cannot list kernels: %w", err)
	}
	if slices.ContainsFunc(kernels, func(k api.Kernel) bool { return k.Name == DefaultKernel }) {
		return nil
	}
	if importer == nil {
		h.say("no kernel %q: not asked to import one", DefaultKernel)
		return nil
	}
	file, modules, err := h.hostKernel()
	if err != nil {
		return err
	}
	if file == "" {
		h.say("warning: found no kernel in /boot; import one with `banger kernel import`")
		return nil
	}
	if err := importer(ctx, file, modules); err != nil {
		return fmt.Errorf("banger is installed, but its default kernel cannot be imported from %s: %w", file, err)
	}
	h.say("imported kernel %q from %s", DefaultKernel, file)
	return nil
}

// hostKernel finds the running kernel, or else the newest one on the disk: a
// host that was just updated, or boots from elsewhere, has only the latter.
func (h *host) hostKernel() (file, modules string, err error) {
	raw, err := os.ReadFile(h.at("/proc/sys/kernel/osrelease"))
	if err != nil {
		return "", "", fmt.Errorf("cannot tell which kernel runs: %w", err)
	}
	release := strings.TrimSpace(string(raw))
	for _, path := range []string{"/boot/vmlinuz-" + release, filepath.Join("/lib/modules", release, "vmlinuz")} {
		if info, err := os.Stat(h.at(path)); err == nil && info.Mode().IsRegular() {
			return h.at(path), h.modulesOf(release), nil
		}
	}
	const prefix = "/boot/vmlinuz-"
	found, err := filepath.Glob(h.at(prefix + "*"))
	if err != nil {
		return "", "", fmt.Errorf("cannot look for kernels: %w", err)
	}
	var newest os.FileInfo
	for _, path := range found {
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() || strings.Contains(path, "rescue") {
			continue
		}
		if newest == nil || info.ModTime().After(newest.ModTime()) {
			newest, file = info, path
		}
	}
	if file == "" {
		return "", "", nil
	}
	return file, h.modulesOf(strings.TrimPrefix(file, h.at(prefix))), nil
}

// modulesOf returns the directory of a release's modules, or "" if a kernel has
// none, as those that are built for guests.
func (h *host) modulesOf(release string) string {
	dir := h.at(filepath.Join("/lib/modules", release))
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return ""
	}
	return dir
}
