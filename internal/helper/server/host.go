package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/paths"
	"banger/internal/version"
)

// hostCheck gathers facts; what is wrong with the host is an answer, not an
// error.
func (s *Server) hostCheck(ctx context.Context, _ helper.Empty) (helper.HostFacts, error) {
	select { // one at a time: it runs a guest
	case s.hostTurn <- struct{}{}:
		defer func() { <-s.hostTurn }()
	case <-ctx.Done():
		return helper.HostFacts{}, ctx.Err()
	}
	f := helper.HostFacts{
		DeviceMapper:  words(checkDM()),
		Loop:          words(canOpen("/dev/loop-control")),
		Tun:           words(canOpen("/dev/net/tun")),
		Jail:          words(s.places.checkMount()),
		Forwarding:    words(helper.CheckForwarding(paths.ForwardSwitch)),
		HelperVersion: version.Version,
	}
	_, err := nftProgram()
	f.NFT = words(err)
	if chains, err := listChains(); err != nil {
		f.NFT = words(errors.Join(errors.New(f.NFT), err))
	} else if f.Firewall, err = s.net.look(chains); err != nil {
		return f, err
	}
	f.Tree = words(s.places.checkTree())
	if f.Foreign, f.Jails, err = s.places.lookAround(); err != nil {
		return f, err
	}
	if f.Slots, err = s.slots.ids(); err != nil {
		return f, err
	}
	if f.VMMs, err = s.confinement(ctx, f.Jails); err != nil {
		return f, err
	}
	f.KVM = words(s.tryKVM(ctx)) // takes longest if it is ill
	return f, nil
}

func words(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func canOpen(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func checkDM() error {
	dm, err := openDM()
	if err != nil {
		return err
	}
	defer dm.Close()
	_, err = dm.targetVersion("snapshot")
	return err
}

// checkMount says whether jails can hold devices and programs, and hard links
// of blobs. Every launch asks, so the mount table is not read.
func (p Places) checkMount() error {
	jails, err := mountID(p.Jails)
	if err != nil {
		return err
	}
	blobs, err := mountID(p.Blobs)
	if err != nil {
		return err
	}
	if jails != blobs {
		return fmt.Errorf("%s and %s are on different mounts", p.Jails, p.Blobs)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.Jails, &st); err != nil {
		return fmt.Errorf("cannot ask for the filesystem of %s: %w", p.Jails, err)
	}
	for option, flag := range map[string]int64{"nodev": unix.ST_NODEV, "noexec": unix.ST_NOEXEC, "ro": unix.ST_RDONLY} {
		if st.Flags&flag != 0 {
			return fmt.Errorf("the filesystem of %s is mounted %s", p.Jails, option)
		}
	}
	return nil
}

// takesJails is checkMount for who is about to make one: a VMM's, or that of a check, in
// which a disk that cannot be opened looks like one that is damaged.
func (p Places) takesJails() error {
	if err := p.checkMount(); err != nil {
		return api.Problemf(http.StatusPreconditionFailed, api.CodePrerequisite, "cannot make a jail: %v", err).
			WithHint("keep %s on one filesystem, without nodev, noexec and ro", paths.HelperDir)
	}
	return nil
}

func mountID(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("cannot stat %s: %w", path, err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, errors.New("the kernel does not tell mounts apart; it must be 5.8 or newer")
	}
	return st.Mnt_id, nil
}
