package appliance

import (
	"regexp"
	"slices"
	"testing"
)

func TestPackages(t *testing.T) {
	name := regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]+$`)
	for list, read := range map[string]func() ([]string, error){"packages": Packages, "image.packages": ImagePackages} {
		names, err := read()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if !name.MatchString(n) {
				t.Errorf("%s: %q is no name of a package", list, n)
			}
		}
		if !slices.Contains(names, "systemd-sysv") {
			t.Errorf("%s has no init", list)
		}
	}
}

func TestHashesAreOfTheirRecipes(t *testing.T) {
	machine, err := Hash()
	if err != nil {
		t.Fatal(err)
	}
	image, err := ImageHash()
	if err != nil || machine == image || len(machine) != 64 {
		t.Errorf("got %q and %q, %v", machine, image, err)
	}
}
