package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/disk"
)

// What a start wants of the host is asked by its phases and by doctor, in the
// same words.

// Checks are what a start wants of this host, and the capabilities' findings.
func (m *Manager) Checks(ctx context.Context) []api.Check {
	all := []api.Check{m.room(), m.jailParents(), m.binaries()}
	for _, c := range m.capabilities() {
		all = append(all, c.checks(ctx)...)
	}
	return all
}

// refuse turns a check that failed into the problem of a start.
func refuse(status int, code string, c api.Check) error {
	if c.Status != api.CheckFail {
		return nil
	}
	return api.Problemf(status, code, "%s", c.Found).WithHint("%s", c.Fix)
}

// plenty is how many times the reserve should be free.
const plenty = 8

// room is about the space that disks of VMs grow into.
func (m *Manager) room() api.Check {
	c := api.Check{ID: "space", Why: "nothing starts and running VMs are paused below the reserve: a full disk makes a VM's disk invalid",
		Fix: "delete VMs or images that are no longer needed, see `banger vm list` and `banger image list`"}
	free, err := disk.Free(m.StateDir)
	switch {
	case err != nil:
		c.Status, c.Found, c.Fix = api.CheckFail, err.Error(), "look at "+m.StateDir
	case free < m.Reserve || m.low.Load():
		c.Status, c.Found = api.CheckFail, fmt.Sprintf("only %d MiB are free in %s, too few for what VMs write", free>>20, m.StateDir)
	case free < plenty*m.Reserve:
		c.Status, c.Found = api.CheckWarn, fmt.Sprintf("only %d MiB are free in %s", free>>20, m.StateDir)
	default:
		c.Status, c.Found, c.Fix = api.CheckPass, fmt.Sprintf("%d MiB are free in %s", free>>20, m.StateDir), ""
	}
	return c
}

// jailParents is about who can put something where a jail will be.
func (m *Manager) jailParents() api.Check {
	c := api.Check{ID: "jail-parents", Status: api.CheckPass, Found: m.JailDir + " is root's",
		Why: "who can write there can be there before the jailer"}
	for _, dir := range []string{m.JailDir, filepath.Dir(m.JailDir)} {
		var st unix.Stat_t
		err := unix.Lstat(dir, &st)
		switch {
		case err != nil:
			c.Found = fmt.Sprintf("cannot find the jails' directory %s: %v", dir, err)
		case st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o022 != 0 || int(st.Uid) != m.JailOwner:
			c.Found = dir + " is not a directory that only root can write"
		default:
			continue
		}
		c.Status, c.Fix = api.CheckFail, "`sudo banger system install` mends it"
		break
	}
	return c
}

// binaries is about the programs that every VM runs in.
func (m *Manager) binaries() api.Check {
	c := api.Check{ID: "binaries", Status: api.CheckPass, Found: "firecracker and jailer are there", Why: "VMs run in them"}
	for _, program := range []string{m.Record.Firecracker, m.Record.Jailer} {
		st, err := os.Lstat(program)
		if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0 || st.Mode().Perm()&0o022 != 0 {
			c.Status, c.Found = api.CheckFail, program+" is not a program that only root can write"
			c.Fix = "`sudo banger system install` brings it back"
			break
		}
	}
	return c
}
