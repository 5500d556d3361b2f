// Package appliance holds the recipe of the machine that internal/machine
// boots: the packages of its Debian, the files laid over them and the script
// that finishes the tree; and the packages of the default image.
package appliance

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"strings"
)

// Suite is the Debian release of the appliance and of the default image.
const Suite = "bookworm"

//go:embed packages image.packages setup.sh root
var files embed.FS

// Root is the tree laid over the appliance's packages: directories 0755,
// files 0644, all of them root's.
func Root() (fs.FS, error) { return fs.Sub(files, "root") }

// Setup is the shell script that finishes the appliance, run in its root.
func Setup() ([]byte, error) { return files.ReadFile("setup.sh") }

// Packages are the names of the appliance's packages.
func Packages() ([]string, error) { return packages("packages") }

// ImagePackages are the names of the default image's packages.
func ImagePackages() ([]string, error) { return packages("image.packages") }

// packages reads a list: a name each line, whatever follows "#" is a remark.
func packages(list string) ([]string, error) {
	text, err := files.ReadFile(list)
	if err != nil {
		return nil, err
	}
	var names []string
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		names = append(names, strings.Fields(line)...)
	}
	return names, lines.Err()
}

// Hash names the appliance's recipe, ImageHash the default image's.
func Hash() (string, error) { return hash("packages", "setup.sh", "root") }

// ImageHash names the recipe of the default image.
func ImageHash() (string, error) { return hash("image.packages") }

func hash(roots ...string) (string, error) {
	sum := sha256.New()
	for _, root := range roots {
		err := fs.WalkDir(files, root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			content, err := files.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(sum, "%q %d\n", path, len(content))
			sum.Write(content)
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
