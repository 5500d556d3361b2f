// Package guestkernel holds the recipe of banger's own guest kernel: a
// configuration fragment and the script that builds it (make kernel). The result
// lies in the cache as a directory guest-kernel-HASH, where machines find it by
// the recipe's sum.
package guestkernel

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
)

// Files of a built kernel that others than the build read.
const (
	Prefix     = "guest-kernel-" // of the directory's name
	KernelFile = "vmlinux"
	ConfigFile = "config"
	RecipeFile = "recipe"
)

//go:embed config build check-config
var files embed.FS

// Recipe names the recipe: a kernel whose RecipeFile says the same was built by
// it, from whichever version of the source.
func Recipe() (string, error) {
	sum := sha256.New()
	for _, name := range []string{"config", "build", "check-config"} { // as the script has it
		content, err := files.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("cannot read the guest kernel's recipe: %w", err)
		}
		sum.Write(content)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
