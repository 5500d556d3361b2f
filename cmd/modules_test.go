// Package cmd holds the programs' main packages, and the test that keeps the
// trusted ones small.
package cmd

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// linked is what the programs that run as root and in every guest may link
// beside the standard library. A longer list is a decision, to be made here.
var linked = map[string][]string{
	"./banger-helper": {
		"github.com/coreos/go-systemd/v22",
		"github.com/godbus/dbus/v5",
		"github.com/moby/sys/mountinfo",
		"golang.org/x/sys",
		"golang.org/x/time",
	},
	"./banger-agent": {
		"github.com/kr/fs",
		"github.com/pkg/sftp",
		"golang.org/x/crypto",
		"golang.org/x/sys",
	},
}

func TestTrustedProgramsLinkOnlyWhatIsListed(t *testing.T) {
	for program, want := range linked {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", program).Output()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for module := range strings.FieldsSeq(string(out)) {
			if module != "banger" && !slices.Contains(got, module) {
				got = append(got, module)
			}
		}
		slices.Sort(got)
		t.Logf("%s links %d modules", program, len(got))
		if !slices.Equal(got, want) {
			t.Errorf("%s links\n  %s\nwant\n  %s", program, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
	}
}

// mostHelperLines is what the code of the helper has, without comments, empty lines
// and tests. It may only fall.
const mostHelperLines = 5746

func TestTheHelperDoesNotGrow(t *testing.T) {
	lines := 0
	for _, dir := range []string{"banger-helper", "../internal/helper", "../internal/helper/server"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(raw)) {
				if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
					lines++
				}
			}
		}
	}
	t.Logf("the helper has %d lines", lines)
	if lines > mostHelperLines {
		t.Errorf("the helper has %d lines, more than %d", lines, mostHelperLines)
	}
}
