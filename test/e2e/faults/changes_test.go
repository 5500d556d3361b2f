//go:build e2e && faults

package faults

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/test/host"
)

// The images of the VMs: one program and no init, which is quick.
const tinyImage, otherImage = "tiny", "other"

// mark leaves a file on the root disk, and the VM stopped.
func (tr *trial) mark() {
	tr.Helper()
	host.Must(tr.TB, "vm", "start", tr.before.Name)
	host.Must(tr.TB, "vm", "exec", tr.before.Name, "--", "sh", "-c", "echo mine >/marker; echo mine >/root/marker; sync")
	host.Must(tr.TB, "vm", "stop", tr.before.Name)
}

// changed tells whether the change is there, and complains when that is wrong.
func (tr *trial) changed(is bool) {
	tr.Helper()
	switch {
	case slices.Contains(refused, tr.k) && is:
		tr.Error("it failed and changed the VM")
	case !slices.Contains(refused, tr.k) && tr.k != killDaemon && tr.k != killVMM && !is:
		tr.Error("it did not go on")
	}
}

func checkMemory(tr *trial, _ kind) {
	tr.Helper()
	tr.changed(tr.m.show(tr.TB, tr.before.Name).MemoryMiB == 160)
	host.Must(tr.TB, "vm", "set", tr.before.Name, "--memory", "128M")
}

func checkDisk(tr *trial, _ kind) {
	tr.Helper()
	size := tr.m.show(tr.TB, tr.before.Name).DiskBytes
	if size != 64<<20 && size != 128<<20 {
		tr.Errorf("its work disk has %d bytes", size)
	}
	tr.changed(size == 128<<20)
}

func checkImage(tr *trial, _ kind) {
	tr.Helper()
	other := tr.m.show(tr.TB, tr.before.Name).Image == otherImage
	tr.changed(other)
	r := host.Banger(tr.TB, "vm", "exec", tr.before.Name, "--", "cat", "/marker")
	if kept := r.Stdout == "mine\n"; kept == other {
		tr.Errorf("it has the other image: %v, its old root disk: %v", other, kept)
	}
	// The work disk is no part of the image.
	host.Must(tr.TB, "vm", "exec", tr.before.Name, "--", "cat", "/root/marker")
}

var (
	importPoints = []string{"import.begun", "import.filled", "import.moved"}
	importKinds  = []kind{killDaemon, broken, full, cancelled, killCLI, stalled}
)

const importName = "imported"

// imported tells whether the image has to be there. From its files' move on an
// import cannot be called off.
func imported(point string, k kind) bool {
	return k == killCLI || k == cancelled && point != "import.begun"
}

func (m *matrix) tryImport(t testing.TB, point string, k kind) {
	t.Helper()
	tr := &trial{TB: t, m: m, a: action{name: "import"}, point: point, k: k}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the command said: %s\n%s", tr.cli.String(), host.Journal(40))
			host.Banger(t, "image", "delete", importName)
		}
	})
	file := filepath.Join(fault.Dir, "tiny.tar")
	host.WriteTiny(t, file)
	tr.inject([]string{"image", "import", importName, file})
	host.Eventually(t, time.Minute, func() error {
		if ops := m.underWay(t); len(ops) > 0 {
			return fmt.Errorf("%s is under way", ops[0].Kind)
		}
		return nil
	})
	there := strings.Contains(host.Must(t, "image", "list"), importName+" ")
	if want := imported(point, k); there != want {
		t.Errorf("the image is there: %v, want %v", there, want)
	}
	if there {
		host.Must(t, "image", "delete", importName)
	}
	if now := host.Images(t); !slices.Equal(now, m.images) {
		t.Errorf("left behind: %s", difference(now, m.images))
	}
	m.onlyBaseline(t)
	m.by.ask(t)
}
