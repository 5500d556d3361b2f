package install

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/installed"
	"banger/internal/paths"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestUnits(t *testing.T) {
	files, err := staticUnits(paths.Local, "v1")
	if err != nil {
		t.Fatal(err)
	}
	owners, err := ownersUnits(installed.Record{Owner: "dev", UID: 1000, GID: 1000, UIDBase: 200000, UIDCount: 65536,
		Bridge: installed.DefaultBridge, Network: installed.DefaultNetwork}, "v1")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, owners...)
	golden := map[string]bool{}
	for _, f := range files {
		if strings.Contains(f.text, "{{") || strings.Contains(f.text, "<no value>") || strings.Contains(f.text, "invalid IP") {
			t.Errorf("%s is not rendered whole", f.path)
		}
		name := filepath.Join("testdata", strings.TrimPrefix(f.path, paths.AdminUnits))
		golden[name] = true
		if *update {
			if err := os.WriteFile(name, []byte(f.text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), f.text); diff != "" {
			t.Errorf("%s differs (go test -update, if it is meant):\n%s", f.path, diff)
		}
	}
	err = filepath.WalkDir("testdata", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !golden[path] {
			t.Errorf("%s is no unit any more", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
