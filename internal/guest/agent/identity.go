package agent

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// personalise gives the kernel what only the host knows: time, randomness and
// the name. Time comes before everything that compares certificates with it.
// All of it may be repeated.
func personalise(doc guest.Identity) error {
	if doc.UnixNano != 0 {
		ts := unix.NsecToTimespec(doc.UnixNano)
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			return fmt.Errorf("cannot set the clock to %v: %w", time.Unix(0, doc.UnixNano).UTC(), err)
		}
	}
	if len(doc.Entropy) > 0 {
		if err := addEntropy(doc.Entropy); err != nil {
			return fmt.Errorf("cannot add entropy: %w", err)
		}
	}
	if err := unix.Sethostname([]byte(doc.Hostname)); err != nil {
		return fmt.Errorf("cannot set the host name: %w", err)
	}
	return nil
}

// addEntropy mixes b into the kernel's pool, counts it as that many random
// bits, and makes the generator use it at once: a guest made from a snapshot
// has the generator of its siblings until then.
func addEntropy(b []byte) error {
	fd, err := unix.Open("/dev/random", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// struct rand_pool_info: bits to credit, bytes that follow, the bytes.
	info := binary.NativeEndian.AppendUint32(nil, uint32(len(b)*8))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(b)))
	info = append(info, b...)
	// The name is misleading: it passes a pointer to these very bytes.
	if err := unix.IoctlSetString(fd, unix.RNDADDENTROPY, string(info)); err != nil {
		return err
	}
	return unix.IoctlSetInt(fd, unix.RNDRESEEDCRNG, 0) // takes no argument
}

// raiseLoopback brings lo up, which an init does but an image without one
// does not.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot raise lo: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("cannot raise lo: %w", err)
	}
	return nil
}

// kernelRelease is uname -r.
func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil { // cannot fail with a valid pointer
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
