package doctor

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/api"
	"banger/internal/paths"
)

func loopNames(all []Loop) string {
	var names []string
	for _, l := range all {
		names = append(names, l.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func TestIdleLoops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := tree(t, map[string]string{"/sys/block/loop9/": ""})
		begun := time.Now()
		if got := h.IdleLoops(t.Context()); len(got) != 0 || time.Since(begun) != 0 {
			t.Errorf("%v after %s", got, time.Since(begun))
		}
		const s = paths.StateDir
		for device, file := range map[string]string{
			"loop0": s + "/vms/" + idA + "/rootfs.cow", "loop1": s + "/images/x/rootfs.ext4", "loop2": s + "/vms/" + idB + "/work (deleted)",
			"loop3": s + "/vms/.deleted-" + idC + "/work", "loop4": "/home/dev/disk", "loop5": s + "-helper/x",
			"loop6": "/vms/" + idD + "/work", "loop7": "/images/" + idD + "/rootfs.ext4", "loop8": "/images/debian/rootfs.ext4",
		} {
			put(t, h, "/sys/block/"+device+"/loop/backing_file", file+"\n")
			put(t, h, "/sys/block/"+device+"/holders/", "")
		}
		put(t, h, "/sys/block/loop0/holders/dm-0/", "")
		go func() { // the start of a VM gets on
			time.Sleep(settle / 2)
			put(t, h, "/sys/block/loop1/holders/dm-1/", "")
			_ = os.RemoveAll(h.at("/sys/block/loop7"))
		}()
		all := h.IdleLoops(t.Context())
		if got := loopNames(all); got != "loop2 loop3 loop6" {
			t.Fatal(got)
		}
		all = ForgetLoops(all, []string{idC})
		if got := loopNames(all); got != "loop2 loop6" {
			t.Error(got)
		}
		f := JudgeLeftovers(nil, nil, all)
		check(t, "two", f, api.CheckWarn, "loop2 on \""+s+"/vms/"+idB+"/work\"")
		if f.Repair != "" || strings.Contains(f.Found, "none") || !strings.Contains(f.Fix, "losetup -d /dev/loop2 /dev/loop6") {
			t.Errorf("%+v", f)
		}
		f = JudgeLeftovers(Leftovers{idA: {"slot"}}, nil, all)
		check(t, "beside others", f, api.CheckWarn, "VM "+idA+" (slot); loop devices")
		if !strings.Contains(f.Fix, "--fix; sudo losetup") || strings.Contains(f.Repair, "loop") {
			t.Errorf("%+v", f)
		}
	})
}
