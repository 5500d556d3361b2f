//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/internal/paths"
	"banger/test/host"
)

// writer makes fsynced blocks of which each one is another, and says after each
// how many there are.
const writer = `i=0; while :; do
	head -c 1000000 /dev/urandom >/root/b.$i && sync /root/b.$i && sha256sum /root/b.$i >>/root/sums && sync /root/sums || exit 1
	i=$((i+1)); echo $i
done`

// When the host's disk fills up under VMs that write, they are paused, go on when
// there is room again, and have all that they had fsynced.
func TestFullHostDiskPausesWriters(t *testing.T) {
	leavesNothing(t)
	var names []string
	out := map[string]string{}
	for range 3 {
		name := running(t).Name
		file, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = file.Close() })
		c := host.Session(t, "vm", "exec", name, "--", "sh", "-c", writer)
		c.Stdout = file
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
		names, out[name] = append(names, name), file.Name()
	}
	written := func(name string) int {
		lines := strings.Fields(read(t, out[name]))
		if len(lines) == 0 {
			return 0
		}
		n, err := strconv.Atoi(lines[len(lines)-1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	each := func(within time.Duration, check func(name string) error) {
		t.Helper()
		for _, name := range names {
			eventually(t, within, func() error { return check(name) })
		}
	}
	each(time.Minute, func(name string) error {
		if written(name) < 2 {
			return fmt.Errorf("%s writes nothing", name)
		}
		return nil
	})
	ballast := filepath.Join(paths.StateDir, "ballast")
	t.Cleanup(func() { _ = os.Remove(ballast) })
	leaveFree(t, ballast, 256<<20) // below the reserve, with room for what is under way
	each(time.Minute, func(name string) error {
		if v := show(t, name); v.State != api.StatePaused || !strings.Contains(v.Reason, "nearly full") {
			return fmt.Errorf("%s is %s (%s)", name, v.State, v.Reason)
		}
		return nil
	})
	if r := banger(t, "vm", "run", "--rm", "--", "true"); r.Code != 125 || !strings.Contains(r.Stderr, "hint: ") {
		t.Errorf("a new VM on a full disk: %+v", r)
	}
	before := map[string]int{}
	for _, name := range names {
		before[name] = written(name)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	each(time.Minute, func(name string) error {
		if v := show(t, name); v.State != api.StateRunning {
			return fmt.Errorf("%s is %s", name, v.State)
		}
		if written(name) <= before[name] {
			return fmt.Errorf("%s does not go on", name)
		}
		return nil
	})
	had := map[string]int{}
	for _, name := range names {
		had[name] = written(name)
		must(t, "vm", "kill", name)
	}
	for _, name := range names {
		n := had[name]
		must(t, "vm", "start", name)
		sums := must(t, "vm", "exec", name, "--", "sh", "-c", "head -n "+strconv.Itoa(n)+" /root/sums | sha256sum --check --quiet - && wc -l </root/sums")
		if have, err := strconv.Atoi(strings.TrimSpace(sums)); err != nil || have < n {
			t.Errorf("%s had fsynced %d blocks, and has %q", name, n, sums)
		}
		must(t, "vm", "kill", name) // a guest that comes up takes the next one's time
	}
}

// A guest that powers off while nobody listens is stopped all the same, once
// bangerd is there again.
func TestPoweroffWhileTheDaemonIsDown(t *testing.T) {
	leavesNothing(t)
	vm := running(t)
	isUp(t, vm.Name) // one that is still coming up may miss its own poweroff
	must(t, "vm", "exec", vm.Name, "--", "sh", "-c", "nohup sh -c 'sleep 5; poweroff' >/dev/null 2>&1 </dev/null & sleep 1")
	root(t, "systemctl", "stop", "bangerd.service")
	t.Cleanup(func() { root(t, "systemctl", "start", "bangerd.service") })
	eventually(t, 2*time.Minute, func() error {
		time.Sleep(time.Second) // to ask takes time from the guest
		if said := root(t, "journalctl", "--namespace=banger", "--quiet", "--output=cat", "--unit="+vm.Unit); !strings.Contains(said, "reboot: ") {
			return errors.New("the guest's kernel has not said that it halts")
		}
		return nil
	})
	root(t, "systemctl", "start", "bangerd.service")
	eventually(t, 3*time.Minute, func() error {
		if v := show(t, vm.Name); v.State != api.StateStopped {
			return fmt.Errorf("it is %s (%s)", v.State, v.Reason)
		}
		return nil
	})
	wantGone(t, vm.ID, 15*time.Second)
}
