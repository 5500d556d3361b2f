package paths

import "testing"

func TestLayoutOf(t *testing.T) {
	for program, want := range map[string]Layout{
		"/usr/bin/banger":                       Distribution,
		"/usr/libexec/banger/bangerd":           Distribution,
		"/usr/local/bin/banger":                 Local,
		"/usr/local/libexec/banger/firecracker": Local,
		"/home/ann/banger/build/bin/banger":     Local,
		"/usr/bin/x/banger":                     Local,
		"":                                      Local,
	} {
		if got := LayoutOf(program); got != want {
			t.Errorf("%q is of %+v", program, got)
		}
	}
}
