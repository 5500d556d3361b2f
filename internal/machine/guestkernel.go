package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/guestkernel"
	"banger/internal/paths"
)

// guestKernel is banger's own guest kernel, which a machine takes once somebody
// has built it (make kernel). The zero value means that nobody has.
type guestKernel struct{ path, hash string }

// guestKernelFile is its name among the files that are brought to a machine.
const guestKernelFile = "guest-kernel"

// guestKernel finds the newest kernel of our recipe in the cache.
func (c cache) guestKernel() (guestKernel, error) {
	recipe, err := guestkernel.Recipe()
	if err != nil {
		return guestKernel{}, err
	}
	dirs, err := filepath.Glob(filepath.Join(c.dir, guestkernel.Prefix+"*"))
	if err != nil {
		return guestKernel{}, fmt.Errorf("cannot look for a guest kernel: %w", err)
	}
	var found guestKernel
	var newest time.Time
	for _, dir := range dirs {
		made, err := os.ReadFile(filepath.Join(dir, guestkernel.RecipeFile))
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(made)) != recipe {
			continue
		}
		info, statErr := os.Stat(dir)
		if err := errors.Join(err, statErr); err != nil {
			return guestKernel{}, fmt.Errorf("cannot read the guest kernel: %w", err)
		}
		if info.ModTime().After(newest) {
			newest, found.path = info.ModTime(), filepath.Join(dir, guestkernel.KernelFile)
		}
	}
	if found.path == "" {
		return guestKernel{}, nil
	}
	if found.hash, err = fileHash(found.path); err != nil {
		return guestKernel{}, fmt.Errorf("cannot read the guest kernel: %w", err)
	}
	return found, nil
}

// install is the part of the installation's script that imports the kernel as
// "banger" and makes it the default, unless the machine's user has chosen
// another. Where VMs still boot an older one, the new one gets a name of its own.
func (k guestKernel) install() string {
	if k.path == "" {
		return ""
	}
	return `own() { runuser -u ` + Owner + ` -- banger "$@" </dev/null; }
		has() { own kernel list --json | grep -q '"name": *"'$1'"'; }
		name=banger; if has banger && ! own kernel delete banger; then name=banger-` + k.hash[:8] + `; fi
		if [ $name = banger ] || ! has $name; then own kernel import $name --from ` + installDir + "/" + guestKernelFile + `; fi
		sed -i -E 's/^(#default_kernel = .*|default_kernel = "banger(-[0-9a-f]{8})?")$/default_kernel = "'$name'"/' ` + paths.ConfigFile + `
		systemctl restart bangerd.service`
}
