package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dmControl drives device-mapper by ioctl: no text tools, no udev, and no
// /dev/mapper/NAME, which udev makes when it gets round to it.
type dmControl struct{ f *os.File }

const (
	dmControlNode = "/dev/mapper/control"
	dmBufferSize  = 16 << 10
)

// dmTarget is one line of a table.
type dmTarget struct {
	sectors uint64
	kind    string
	params  string
}

// dmStatus is what the kernel says of a device.
type dmStatus struct {
	dev       uint64
	openCount int
	uuid      string
	suspended bool
	active    bool // has a live table
	targets   []dmTarget
}

// openDM fails with fs.ErrNotExist on a host without device-mapper.
func openDM() (*dmControl, error) {
	f, err := os.OpenFile(dmControlNode, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open device-mapper: %w", err)
	}
	return &dmControl{f}, nil
}

func (c *dmControl) Close() error { return c.f.Close() }

// create makes a device without a table.
func (c *dmControl) create(name, uuid string) error {
	if _, _, err := c.ioctl(unix.DM_DEV_CREATE, dmMessage{name: name, uuid: uuid}); err != nil {
		return fmt.Errorf("cannot create %s: %w", name, err)
	}
	return nil
}

// load gives the device a table, which resume makes the live one.
func (c *dmControl) load(name string, t dmTarget) error {
	if _, _, err := c.ioctl(unix.DM_TABLE_LOAD, dmMessage{name: name, table: &t}); err != nil {
		return fmt.Errorf("cannot load table of %s: %w", name, err)
	}
	return nil
}

// resume is the kernel's "suspend" call without its flag. If a table was loaded
// meanwhile, the kernel suspends the device, exchanges the tables and resumes
// it, all within this one call: no process can die in between and leave a
// suspended device behind. What the page cache holds may stay there.
func (c *dmControl) resume(name string) error {
	if _, _, err := c.ioctl(unix.DM_DEV_SUSPEND, dmMessage{name: name, flags: unix.DM_SKIP_LOCKFS_FLAG}); err != nil {
		return fmt.Errorf("cannot resume %s: %w", name, err)
	}
	return nil
}

// remove takes the device away: now if nobody has it open, otherwise when its
// last holder closes it.
func (c *dmControl) remove(name string) error {
	_, _, err := c.ioctl(unix.DM_DEV_REMOVE, dmMessage{name: name, flags: unix.DM_DEFERRED_REMOVE})
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("cannot remove %s: %w", name, err)
	}
	return nil
}

// status describes the device; fs.ErrNotExist if there is none.
func (c *dmControl) status(name string) (dmStatus, error) {
	h, payload, err := c.ioctl(unix.DM_TABLE_STATUS, dmMessage{name: name, flags: unix.DM_STATUS_TABLE_FLAG | unix.DM_NOFLUSH_FLAG})
	if errors.Is(err, unix.ENXIO) {
		return dmStatus{}, fs.ErrNotExist
	}
	if err != nil {
		return dmStatus{}, fmt.Errorf("cannot read status of %s: %w", name, err)
	}
	targets, err := decodeTargets(payload, h.Target_count)
	if err != nil {
		return dmStatus{}, fmt.Errorf("cannot read status of %s: %w", name, err)
	}
	return dmStatus{
		dev:       h.Dev,
		openCount: int(h.Open_count),
		uuid:      text(h.Uuid[:]),
		suspended: h.Flags&unix.DM_SUSPEND_FLAG != 0,
		active:    h.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0,
		targets:   targets,
	}, nil
}

// targetVersion returns the version of a target; asking makes the kernel load
// its module.
func (c *dmControl) targetVersion(kind string) (string, error) {
	_, payload, err := c.ioctl(unix.DM_GET_TARGET_VERSION, dmMessage{name: kind})
	if err != nil {
		return "", fmt.Errorf("cannot find target %s: %w", kind, err)
	}
	if len(payload) < 16 {
		return "", fmt.Errorf("cannot find target %s: short answer", kind)
	}
	v := func(i int) uint32 { return binary.NativeEndian.Uint32(payload[4*i:]) }
	return fmt.Sprintf("%d.%d.%d", v(1), v(2), v(3)), nil
}

type dmMessage struct {
	name, uuid string
	flags      uint32
	table      *dmTarget // of one line
}

// ioctl sends a message and returns the answer's header and payload.
func (c *dmControl) ioctl(request uintptr, m dmMessage) (unix.DmIoctl, []byte, error) {
	buf, err := m.encode()
	if err != nil {
		return unix.DmIoctl{}, nil, err
	}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), dmBufferSize)
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.f.Fd(), request, uintptr(unsafe.Pointer(&buf[0])))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return unix.DmIoctl{}, nil, errno
		}
		break
	}
	h := *(*unix.DmIoctl)(unsafe.Pointer(&buf[0]))
	switch {
	case h.Flags&unix.DM_BUFFER_FULL_FLAG != 0:
		return h, nil, errors.New("answer does not fit the buffer")
	case h.Data_start < unix.SizeofDmIoctl || h.Data_size > dmBufferSize || h.Data_start > h.Data_size:
		// Calls without payload answer with the header alone.
		return h, nil, nil
	}
	return h, raw[h.Data_start:h.Data_size], nil
}

// encode lays the message out as the kernel wants it, in memory aligned for
// its header.
func (m dmMessage) encode() ([]uint64, error) {
	buf := make([]uint64, dmBufferSize/8)
	h := (*unix.DmIoctl)(unsafe.Pointer(&buf[0]))
	h.Version = [3]uint32{4, 0, 0}
	h.Data_size = dmBufferSize
	h.Data_start = unix.SizeofDmIoctl
	h.Flags = m.flags
	if len(m.name) >= len(h.Name) || len(m.uuid) >= len(h.Uuid) {
		return nil, errors.New("name is too long")
	}
	copy(h.Name[:], m.name)
	copy(h.Uuid[:], m.uuid)
	if m.table == nil {
		return buf, nil
	}
	h.Target_count = 1
	payload := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), dmBufferSize)[unix.SizeofDmIoctl:]
	if unix.SizeofDmTargetSpec+len(m.table.params) >= len(payload) {
		return nil, errors.New("table is too long")
	}
	binary.NativeEndian.PutUint64(payload[8:], m.table.sectors)
	copy(payload[24:39], m.table.kind)
	copy(payload[unix.SizeofDmTargetSpec:], m.table.params)
	return buf, nil
}

// decodeTargets reads a table, in which each line tells its distance from the start to
// the next.
func decodeTargets(payload []byte, count uint32) ([]dmTarget, error) {
	var out []dmTarget
	at := 0
	for range count {
		if at < 0 || at+unix.SizeofDmTargetSpec > len(payload) {
			return nil, errors.New("table is cut off")
		}
		b := payload[at:]
		out = append(out, dmTarget{
			sectors: binary.NativeEndian.Uint64(b[8:]),
			kind:    text(b[24:40]),
			params:  text(b[unix.SizeofDmTargetSpec:]),
		})
		at = int(binary.NativeEndian.Uint32(b[20:]))
	}
	return out, nil
}

func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
