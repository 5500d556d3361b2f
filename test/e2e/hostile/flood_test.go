//go:build e2e

package hostile

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/test/host"
)

// journalCap is what install lets the VMs' journal have, and one file more.
const journalCap = 256<<20 + 16<<20

// A VMM, and so a guest, that prints without end neither fills the disk nor stops
// another VM from answering.
func TestFloodOfAConsole(t *testing.T) {
	other := normal(t)
	h := conquered(t)
	answers(t, "before the flood", other)
	before := journalBytes(t)
	if err := h.ask(http.MethodPost, "/bomb/console", nil, nil); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	// As much as it takes to see that lines are dropped.
	host.Eventually(t, time.Minute, func() error {
		const dropped = "a596d6fe7bfa4994828e72309e95d61e" // SD_MESSAGE_JOURNAL_DROPPED
		out := host.Root(t, "journalctl", "--namespace=banger", "--quiet", "--output=cat", "--lines=3",
			fmt.Sprint("--since=@", begin.Unix()), "MESSAGE_ID="+dropped)
		if !strings.Contains(out, h.vm.Unit) {
			return fmt.Errorf("nothing was dropped: %q", out)
		}
		return nil
	})
	for range 2 {
		answers(t, "in the flood", other)
	}
	spent := time.Since(begin)
	if err := h.ask(http.MethodGet, "/", nil, nil); err != nil {
		t.Errorf("the flood has ended: %v", err)
	}
	now := journalBytes(t)
	rate := float64(now-before) / spent.Seconds()
	t.Logf("journal was %d MiB, is %d MiB: %.1f MiB a second", before>>20, now>>20, rate/(1<<20))
	// The unit lets 1000 lines of at most 4 KiB pass in 30 s, journald some times as
	// many, and a burst comes first: far below what a program can print.
	if now > journalCap || rate > 8<<20 {
		t.Errorf("the journal has %d bytes, %.0f more a second", now, rate)
	}
	conf := host.Read(t, "/etc/systemd/journald@banger.conf.d/10-banger.conf")
	if !strings.Contains(conf, "SystemMaxUse=256M") {
		t.Errorf("the cap is %s", conf)
	}
	host.Must(t, "vm", "kill", h.vm.Name)
}

// journalBytes is the size of the journals of the namespace banger.
func journalBytes(t *testing.T) (sum int64) {
	t.Helper()
	id := host.Read(t, "/etc/machine-id")
	for _, dir := range []string{"/var/log/journal/", "/run/log/journal/"} {
		for _, file := range host.Glob(t, filepath.Join(dir, id+".banger", "*")) {
			if info, err := os.Stat(file); err == nil { // it may be rotated away
				sum += info.Size()
			}
		}
	}
	return sum
}
