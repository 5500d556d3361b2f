//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/paths"
)

// doctor returns the checks by id. Warnings are of the lab: its processor is
// emulated, its Firecracker not the newest, and nothing keeps its clock.
func doctor(t *testing.T, args ...string) map[string]api.Check {
	t.Helper()
	r := banger(t, append([]string{"doctor", "--json"}, args...)...)
	var all []api.Check
	if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	byID := map[string]api.Check{}
	failed := false
	for _, c := range all {
		byID[c.ID] = c
		failed = failed || c.Status == api.CheckFail
	}
	if (r.Code == 2) != failed || r.Code > 2 {
		t.Errorf("exit code %d of %+v", r.Code, all)
	}
	return byID
}

func TestDoctor(t *testing.T) {
	leavesNothing(t)
	v := running(t)
	for id, c := range doctor(t) {
		if c.Status == api.CheckFail || c.Status == api.CheckWarn && !slices.Contains([]string{"cpu", "advisories", "resolver", "swap", "smt", "clock"}, id) {
			t.Errorf("the lab is not well: %+v", c)
		}
	}
	const id = "abcdefabcdef"
	jail := filepath.Join(paths.JailDir, id)
	if err := os.Mkdir(jail, 0o711); err != nil {
		t.Fatal(err)
	}
	dropIn := filepath.Join(paths.AdminUnits, "banger-vm-.service.d/90-test.conf")
	if err := os.WriteFile(dropIn, []byte("[Service]\nNoNewPrivileges=no\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := doctor(t)
	if err := os.Remove(dropIn); err != nil {
		t.Fatal(err)
	}
	if c := got["drop-ins"]; c.Status != api.CheckWarn || !strings.Contains(c.Found, "NoNewPrivileges") {
		t.Errorf("%+v", c)
	}
	if c := got["leftovers"]; c.Status != api.CheckWarn || !strings.Contains(c.Repair, id) || strings.Contains(c.Repair, v.ID) {
		t.Errorf("%+v", c)
	}
	if c := doctor(t, "--fix")["leftovers"]; c.Status != api.CheckPass {
		t.Errorf("after --fix: %+v", c)
	}
	if _, err := os.Lstat(jail); err == nil {
		t.Error("the jail is still there")
	}
	must(t, "vm", "exec", v.Name, "--", "true")
}
