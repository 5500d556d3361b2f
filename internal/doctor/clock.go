package doctor

import (
	"context"
	"os"
	"strings"
	"time"
)

// clock asks timedatectl, since bangerd itself may make no call that could set
// the clock, and so not the one that asks the kernel about it either.
func (h Host) clock(ctx context.Context) Finding {
	const fix = "sudo timedatectl set-ntp true, or see that chrony or the like runs and reaches its servers"
	at, err := time.Parse(time.RFC3339, h.Record.InstalledAt)
	switch now := h.Now(); {
	case err != nil:
		return Warn(reinstall, "the record of the installation has no time: %v", err)
	case now.Before(at):
		return Fail("set the clock, and use a service that keeps it", "it is %s, before banger was installed at %s", now.UTC().Format(time.RFC3339), h.Record.InstalledAt)
	}
	kept, err := h.run(ctx, "timedatectl", "show", "--property=NTPSynchronized", "--value")
	switch kept = strings.TrimSpace(kept); {
	case err == nil && kept == "yes":
		return Pass("a service keeps it")
	case err == nil && kept == "no":
		return Warn(fix, "it is after the installation, but nothing keeps it: the kernel takes it for unsynchronized")
	}
	if _, lost := os.Lstat(h.at("/run/systemd/timesync/synchronized")); lost == nil {
		return Pass("systemd-timesyncd has set it since the host booted")
	}
	found := Warn(fix, "it is after the installation; whether anything keeps it cannot be told")
	if err != nil {
		found.Found += ": " + err.Error()
	}
	return found
}
