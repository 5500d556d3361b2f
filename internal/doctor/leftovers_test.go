package doctor

import (
	"os"
	"slices"
	"strings"
	"testing"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/paths"
)

const (
	idA = "0123456789ab"
	idB = "ba9876543210"
	idC = "cccccccccccc"
	idD = "dddddddddddd"
)

func TestLeftovers(t *testing.T) {
	h := tree(t, map[string]string{
		"/sys/class/net/tap" + idA + "/":                             "",
		"/sys/class/net/tap0/":                                       "",
		"/sys/class/net/tapXYZ3456789ab/":                            "",
		"/sys/block/dm-0/dm/name":                                    "fc-rootfs-" + idA + "\n",
		"/sys/block/dm-1/dm/name":                                    "vg-root\n",
		"/sys/block/dm-2/dm/name":                                    "fc-work-" + idB + "\n",
		paths.ExitDir + "/" + idB + ".json":                          "{}",
		paths.StateDir + "/vms/" + idC + "/":                         "",
		paths.StateDir + "/vms/.deleted-" + idD + "/":                "",
		paths.StateDir + "/vms/.deleted-x/":                          "",
		"/sys/fs/cgroup/banger.slice/banger-vm-" + idB + ".service/": "",
		"/sys/fs/cgroup/banger.slice/banger-vm-../../etc.service/":   "",
	})
	kernel, files, err := h.Traces(helper.HostFacts{Slots: []string{idA, idB}, Jails: []string{idB}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(kernel.IDs(), []string{idA, idB, idD}) || !slices.Equal(files.IDs(), []string{idC}) {
		t.Fatalf("kernel %v, files %v", kernel, files)
	}
	if got := strings.Join(kernel[idB], " "); got != "slot jail disk unit exit record" {
		t.Errorf("of B: %s", got)
	}
	kernel.Forget([]string{idB})
	h.ForgetEnded(kernel)
	check(t, "a delete that was cut off", JudgeLeftovers(Leftovers{idD: kernel[idD]}, files, nil), api.CheckWarn, "VM "+idD+" (directory of a delete)")
	if err := os.Remove(h.at(paths.StateDir + "/vms/.deleted-" + idD)); err != nil {
		t.Fatal(err)
	}
	if h.ForgetEnded(kernel); !slices.Equal(kernel.IDs(), []string{idA}) {
		t.Errorf("a delete that ended meanwhile: %v", kernel)
	}
	f := JudgeLeftovers(kernel, files, nil)
	check(t, "A is left", f, api.CheckWarn, "VM "+idA+" (slot, tap, disk)")
	if !strings.Contains(f.Repair, idA) || strings.Contains(f.Repair, idC) {
		t.Errorf("repair: %q", f.Repair)
	}
	check(t, "and C has files", f, api.CheckWarn, idC)
	kernel.Forget([]string{idA})
	// A directory may be the only copy of something: never repaired.
	f = JudgeLeftovers(kernel, files, nil)
	check(t, "C has files", f, api.CheckWarn, idC)
	if f.Repair != "" {
		t.Errorf("files would be removed: %q", f.Repair)
	}
	files.Forget([]string{idC})
	check(t, "nothing", JudgeLeftovers(kernel, files, nil), api.CheckPass, "none")
}
