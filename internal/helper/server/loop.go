package server

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// loopTries bounds the race for a free device. Whoever loses it asks again at
// once: the next answer is another number, so there is nothing to wait for.
const loopTries = 64

// loopDevice is an open loop device that the kernel frees when its last user,
// in the end the dm device on top, lets go of it.
type loopDevice struct {
	f            *os.File
	major, minor uint32
	sectors      uint64
}

// attachLoop puts a loop device on an open file.
func attachLoop(backing *os.File, flags uint32) (*loopDevice, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open loop control: %w", err)
	}
	defer control.Close()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("cannot find a free loop device: %w", err)
		}
		d, err := configureLoop(n, backing, flags|unix.LO_FLAGS_AUTOCLEAR)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot attach loop device to %q: %w", backing.Name(), err)
		}
		return d, nil
	}
	return nil, fmt.Errorf("cannot attach loop device to %q: all were taken %d times", backing.Name(), loopTries)
}

func configureLoop(n int, backing *os.File, flags uint32) (*loopDevice, error) {
	mode := os.O_RDWR
	if flags&unix.LO_FLAGS_READ_ONLY != 0 {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), mode, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: flags}}
	err = unix.IoctlLoopConfigure(int(f.Fd()), &config)
	if errors.Is(err, unix.EINVAL) && flags&unix.LO_FLAGS_DIRECT_IO != 0 {
		// Some filesystems have no direct I/O; most kernels fall back by themselves.
		config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(f.Fd()), &config)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	d, err := describeLoop(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

func describeLoop(f *os.File) (*loopDevice, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	return &loopDevice{f: f, major: unix.Major(st.Rdev), minor: unix.Minor(st.Rdev), sectors: uint64(size) / 512}, nil
}

// name is how a dm table names the device.
func (d *loopDevice) name() string { return fmt.Sprintf("%d:%d", d.major, d.minor) }

// openLoop opens a loop device by its name in a dm table.
func openLoop(name string) (*os.File, error) {
	link, err := os.Readlink(filepath.Join("/sys/dev/block", name))
	if err != nil {
		return nil, err
	}
	return os.Open(filepath.Join("/dev", filepath.Base(link)))
}

// loopBacking tells what a loop device lies on.
func loopBacking(name string) (*unix.LoopInfo64, error) {
	f, err := openLoop(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.IoctlLoopGetStatus64(int(f.Fd()))
}

// resizeLoop gives a loop device the size of its file and describes it; what is
// returned is closed.
func resizeLoop(name string) (*loopDevice, error) {
	f, err := openLoop(name)
	if err != nil {
		return nil, fmt.Errorf("cannot open loop device %s: %w", name, err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return nil, fmt.Errorf("cannot resize loop device %s: %w", name, err)
	}
	return describeLoop(f)
}
