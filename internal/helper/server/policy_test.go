package server

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"banger/internal/paths"
)

var update = flag.Bool("update", false, "write docs/helper-policy.txt anew")

// What the helper may is on one page that people review; a change of it shows
// in the page's history.
func TestPolicyIsAsPublished(t *testing.T) {
	const page = "../../../docs/helper-policy.txt"
	var got bytes.Buffer
	if err := writePolicy(&got, unitsForLocal(t)); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(page, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("docs/helper-policy.txt differs (go test -update, if it is meant):\n%s", diff)
	}
}

// unitsForLocal are the units as an installation below /usr/local has them.
func unitsForLocal(t *testing.T) fs.FS {
	t.Helper()
	const dir = "../../install/units"
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		t.Skip("the sources are not here: this runs in the lab")
	}
	units := fstest.MapFS{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(filepath.Join(dir, name))
		units[name] = &fstest.MapFile{Data: bytes.ReplaceAll(raw, []byte("{{.Libexec}}"), []byte(paths.Local.Libexec))}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return units
}

func TestPolicyHasEveryVerb(t *testing.T) {
	verbs := (&Server{}).verbs()
	t.Logf("the helper has %d verbs", len(verbs))
	seen := map[string]bool{}
	for _, v := range verbs {
		text := verbTexts[v.name]
		if seen[v.name] || !strings.HasSuffix(text.does, ".") || text.touches == "" || strings.HasSuffix(text.touches, ".") {
			t.Errorf("%s is not described, or there twice", v.name)
		}
		seen[v.name] = true
	}
	if len(seen) != len(verbTexts) {
		t.Errorf("%d verbs and %d texts", len(seen), len(verbTexts))
	}
}
