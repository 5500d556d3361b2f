package install

import (
	"os"
	"strings"
	"testing"

	"banger/internal/paths"
)

func TestCheckPlaces(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(f *fakeHost) error
		want   string
	}{
		"group writes": {func(f *fakeHost) error { return os.Chmod(f.at("/usr/local"), 0o775) }, "/usr/local: others than root can write"},
		"all write":    {func(f *fakeHost) error { return os.Chmod(f.at("/etc"), 0o777) }, "/etc: others than root can write"},
		"sticky":       {func(f *fakeHost) error { return os.Chmod(f.at("/var/lib"), 0o777|os.ModeSticky) }, "/var/lib: others than root can write"},
		"symlink": {func(f *fakeHost) error {
			if err := os.Rename(f.at("/usr/local"), f.at("/usr/elsewhere")); err != nil {
				return err
			}
			return os.Symlink("elsewhere", f.at("/usr/local"))
		}, "/usr/local: it is a symlink"},
		"file":    {func(f *fakeHost) error { f.put(paths.Local.Libexec, ""); return nil }, paths.Local.Libexec + ": it is not a directory"},
		"other's": {func(f *fakeHost) error { f.rootUID++; return nil }, "it does not belong to root"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newHost(t)
			if err := tt.change(f); err != nil {
				t.Fatal(err)
			}
			out, err := f.doInstall()
			if err == nil || !strings.Contains(err.Error(), tt.want) || out != "" || f.exists(etcDir) {
				t.Errorf("err = %v, want %q; said %q", err, tt.want, out)
			}
		})
	}
}
