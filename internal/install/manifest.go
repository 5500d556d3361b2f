package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
)

// manifest is what installations made on this host, kept in files.json. It is
// written before the things it names, so that none can exist unnoted. After an
// uninstall it remains as long as something it names does.
type manifest struct {
	// Programs is the directory of the installation's programs: what an uninstall
	// leaves is still of a package, or not. The package's postrm reads it.
	Programs string `json:"programs,omitempty"`
	// Files maps a path to the sha256 sums it may have, the newest last.
	Files map[string][]string `json:"files"`
	Dirs  []string            `json:"dirs"` // in the order they were made
	// Lines maps /etc/subuid and /etc/subgid to the line added there.
	Lines map[string]string `json:"lines,omitempty"`
	// Package maps a package's file to what it was when services were last
	// brought up to date; to nothing, if they never were.
	Package map[string]string `json:"package,omitempty"`
	// Pending are files that were announced since services were last brought
	// up to date.
	Pending []string `json:"pending,omitempty"`
}

func (h *host) loadManifest() (*manifest, error) {
	m := &manifest{Files: map[string][]string{}, Lines: map[string]string{}}
	info, err := os.Lstat(h.at(manifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the list of installed files: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 || !h.isRoots(info) {
		return nil, fmt.Errorf("cannot trust %s: it must be a regular file of root that nobody else can write", manifestFile)
	}
	raw, err := os.ReadFile(h.at(manifestFile))
	if err != nil {
		return nil, fmt.Errorf("cannot read the list of installed files: %w", err)
	}
	if err := json.Unmarshal(raw, m); err != nil { // a newer banger may note more
		return nil, fmt.Errorf("cannot read %s: %w", manifestFile, err)
	}
	if m.Files == nil || m.Lines == nil {
		return nil, fmt.Errorf("cannot read %s: it is incomplete", manifestFile)
	}
	return m, nil
}

// saveManifest writes the manifest if it differs from the stored one, and
// removes it when it names nothing.
func (h *host) saveManifest(m *manifest) error {
	if m.empty() {
		if err := os.Remove(h.at(manifestFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove the list of installed files: %w", err)
		}
		return nil
	}
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot write the list of installed files: %w", err)
	}
	raw = append(raw, '\n')
	if old, err := os.ReadFile(h.at(manifestFile)); err == nil && bytes.Equal(old, raw) {
		return nil
	}
	err = replaceFile(h.at(manifestFile), 0o644, h.rootUID, h.rootGID, func(w io.Writer) error {
		_, err := w.Write(raw)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot write the list of installed files: %w", err)
	}
	return nil
}

func (m *manifest) empty() bool { return len(m.Files)+len(m.Dirs)+len(m.Lines) == 0 }

// announce notes what is about to be written, and what of a package is about to
// be brought up: an uninstall has to stop it, however far that came.
func (m *manifest) announce(files, packaged []file, lines map[string]string) {
	for _, f := range packaged {
		if m.Package == nil {
			m.Package = map[string]string{}
		}
		if _, known := m.Package[f.path]; !known {
			m.Package[f.path] = ""
		}
	}
	for _, f := range files {
		sums := slices.DeleteFunc(m.Files[f.path], func(s string) bool { return s == f.sum })
		m.Files[f.path] = append(sums, f.sum)
		if !slices.Contains(m.Pending, f.path) {
			m.Pending = append(m.Pending, f.path)
		}
	}
	maps.Copy(m.Lines, lines)
}

// settle notes that everything announced was written and is in use, and so is
// what a package brought.
func (m *manifest) settle(packaged []file) {
	for _, path := range m.Pending {
		sums := m.Files[path]
		m.Files[path] = sums[len(sums)-1:]
	}
	m.Pending = nil
	m.Package = nil
	for _, f := range packaged {
		if m.Package == nil {
			m.Package = map[string]string{}
		}
		m.Package[f.path] = f.identity()
	}
}

func (m *manifest) wrote(path, sum string) bool { return slices.Contains(m.Files[path], sum) }

// has reports whether the file is one of ours or of our package.
func (m *manifest) has(path string) bool {
	_, packaged := m.Package[path]
	return packaged || len(m.Files[path]) > 0
}

func (m *manifest) made(dir string) bool { return slices.Contains(m.Dirs, dir) }

func (m *manifest) note(dir string) {
	if !m.made(dir) {
		m.Dirs = append(m.Dirs, dir)
	}
}
