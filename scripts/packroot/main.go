// Command packroot lays out the tree that a package holds: programs as the build
// made them, units as the installation renders them, manual pages, documents.
//
//	packroot -bin DIR -version V -maintainer M -o ROOT    run in the checkout
package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/internal/install"
	"banger/internal/paths"
)

func main() {
	var t tree
	flag.StringVar(&t.bin, "bin", "build/bin", "directory of the programs")
	flag.StringVar(&t.version, "version", "", "version of the package")
	flag.StringVar(&t.maintainer, "maintainer", "", "NAME <MAIL>")
	flag.StringVar(&t.root, "o", "", "directory to lay the tree out in; what is there is removed")
	flag.Parse()
	if err := t.lay(); err != nil {
		fmt.Fprintln(os.Stderr, "packroot:", err)
		os.Exit(1)
	}
}

type tree struct {
	bin, version, maintainer, root string
	date                           time.Time
}

const docDir = "/usr/share/doc/banger"

func (t *tree) lay() error {
	if t.version == "" || t.maintainer == "" || t.root == "" {
		return errors.New("-version, -maintainer and -o are needed")
	}
	// Two builds of one commit give the same package.
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("cannot read SOURCE_DATE_EPOCH: %w", err)
	}
	t.date = time.Unix(epoch, 0).UTC()
	if err := os.RemoveAll(t.root); err != nil {
		return err
	}
	for _, step := range []func() error{t.programs, t.units, t.manual, t.documents, t.licences} {
		if err := step(); err != nil {
			return err
		}
	}
	return t.copy("packaging/lintian-overrides", "/usr/share/lintian/overrides/banger")
}

func (t *tree) programs() error {
	for name, dir := range map[string]string{
		"banger": paths.Distribution.Bin, "bangerd": paths.Distribution.Libexec, "banger-helper": paths.Distribution.Libexec,
		"banger-agent": paths.Distribution.Libexec, "firecracker": paths.Distribution.Libexec, "jailer": paths.Distribution.Libexec,
	} {
		raw, err := os.ReadFile(filepath.Join(t.bin, name))
		if err != nil {
			return err
		}
		if err := t.write(filepath.Join(dir, name), raw, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) units() error {
	units, err := install.PackageUnits()
	if err != nil {
		return err
	}
	for path, text := range units {
		if err := t.write(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) documents() error {
	docs, err := filepath.Glob("docs/*.md")
	if err != nil {
		return err
	}
	for _, doc := range docs {
		if err := t.copy(doc, filepath.Join(docDir, filepath.Base(doc))); err != nil {
			return err
		}
	}
	entry := fmt.Sprintf("banger (%s-1) unstable; urgency=medium\n\n  * What users notice is in CHANGELOG.md.\n\n -- %s  %s\n",
		t.version, t.maintainer, t.date.Format(time.RFC1123Z))
	changes, err := os.ReadFile("CHANGELOG.md")
	if err != nil {
		return err
	}
	return errors.Join(t.zip(filepath.Join(docDir, "changelog.Debian.gz"), []byte(entry)),
		t.zip(filepath.Join(docDir, "changelog.gz"), changes))
}

// licences writes the copyright file and the licences of all modules that are
// linked into our programs.
func (t *tree) licences() error {
	text, err := os.ReadFile("packaging/copyright")
	if err != nil {
		return err
	}
	own, err := os.ReadFile("LICENSE")
	if err != nil {
		return err
	}
	_, terms, ok := strings.Cut(string(own), "authors\n\n")
	if !ok {
		return errors.New("LICENSE does not begin with whose it is")
	}
	if err := t.write(filepath.Join(docDir, "copyright"), bytes.Replace(text, []byte("LICENSE\n"), []byte(terms+"\n"), 1), 0o644); err != nil {
		return err
	}
	modules, err := linkedModules()
	if err != nil {
		return err
	}
	var all bytes.Buffer
	for _, m := range modules {
		texts, err := licencesIn(m.dir)
		if err != nil {
			return err
		}
		if len(texts) == 0 {
			return fmt.Errorf("%s has no licence that could be found", m.name)
		}
		fmt.Fprintf(&all, "%s\n%s\n\n%s\n\n", m.name, strings.Repeat("=", len(m.name)), strings.Join(texts, "\n\n"))
	}
	return t.zip(filepath.Join(docDir, "modules.gz"), all.Bytes())
}

type module struct{ name, dir string }

func linkedModules() (list []module, err error) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}\t{{.Dir}}{{end}}{{end}}", "./cmd/...").Output()
	if err != nil {
		return nil, fmt.Errorf("cannot list linked modules: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		name, dir, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if ok {
			list = append(list, module{name, dir})
		}
	}
	slices.SortFunc(list, func(a, b module) int { return strings.Compare(a.name, b.name) })
	return slices.Compact(list), nil
}

func licencesIn(dir string) (texts []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if e.IsDir() || !strings.HasPrefix(name, "LICEN") && !strings.HasPrefix(name, "COPYING") && !strings.HasPrefix(name, "NOTICE") {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		texts = append(texts, strings.TrimSpace(string(raw)))
	}
	return texts, nil
}

func (t *tree) copy(from, to string) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return t.write(to, raw, 0o644)
}

// zip compresses as Debian wants its documents, without a date.
func (t *tree) zip(path string, text []byte) error {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	_, err = z.Write(text)
	if err := errors.Join(err, z.Close()); err != nil {
		return err
	}
	return t.write(path, b.Bytes(), 0o644)
}

// write makes the file with this mode whatever the umask, and its directories.
func (t *tree) write(path string, content []byte, mode fs.FileMode) error {
	full := filepath.Join(t.root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	for dir := filepath.Dir(full); len(dir) >= len(t.root); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	return errors.Join(os.WriteFile(full, content, mode), os.Chmod(full, mode), os.Chtimes(full, t.date, t.date))
}
