package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// ptyRequest and windowChange are payloads of RFC 4254, 6.2 and 6.7.
type ptyRequest struct {
	Term          string
	Cols, Rows    uint32
	Width, Height uint32
	Modes         string
}

type windowChange struct {
	Cols, Rows    uint32
	Width, Height uint32
}

// terminal is a pseudo terminal. The session has the master, the command gets
// the slave.
type terminal struct {
	term   string
	master *os.File // non-blocking
	slave  int      // -1 when handed over
}

// openTerminal makes a terminal as the client asked for it. The slave is
// opened through its master, not by name, so it works whatever the image's
// init mounts at /dev/pts meanwhile.
func openTerminal(req ptyRequest) (*terminal, error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open a terminal: %w", err)
	}
	slave, err := openSlave(master)
	if err != nil {
		_ = unix.Close(master)
		return nil, fmt.Errorf("cannot open a terminal: %w", err)
	}
	t := &terminal{term: req.Term, master: os.NewFile(uintptr(master), "terminal"), slave: slave}
	err = t.resize(windowChange{req.Cols, req.Rows, req.Width, req.Height})
	if err == nil {
		err = t.setModes([]byte(req.Modes))
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("cannot set up a terminal: %w", err)
	}
	return t, nil
}

func openSlave(master int) (int, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, err
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// giveTo makes the slave the property of an ordinary user, as login does.
func (t *terminal) giveTo(a account) error {
	if a.uid == 0 {
		return nil
	}
	const ttyGroup = 5 // of every distribution; the devpts mount has it too
	return unix.Fchown(t.slave, int(a.uid), ttyGroup)
}

// dropSlave closes our copy, so that the end of the command's is seen.
func (t *terminal) dropSlave() {
	if t.slave >= 0 {
		_ = unix.Close(t.slave)
		t.slave = -1
	}
}

// close hangs up: the kernel sends SIGHUP to whoever uses the terminal.
func (t *terminal) close() {
	t.dropSlave()
	_ = t.master.Close()
}

func (t *terminal) resize(w windowChange) error {
	size := &unix.Winsize{Row: cell(w.Rows), Col: cell(w.Cols), Xpixel: cell(w.Width), Ypixel: cell(w.Height)}
	return t.control(func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size) })
}

func cell(n uint32) uint16 { return uint16(min(n, 1<<16-1)) }

// foreground is the process group that Ctrl-C would reach, 0 if there is none.
func (t *terminal) foreground() int {
	var pgid int
	err := t.control(func(fd int) (err error) {
		pgid, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	if err != nil {
		return 0
	}
	return pgid
}

// endInput is what the end of a client's input means on a terminal: the EOF
// character, if the terminal is in the mode that knows one.
func (t *terminal) endInput() error {
	var eof []byte
	err := t.control(func(fd int) error {
		mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil && mode.Lflag&unix.ICANON != 0 {
			eof = []byte{mode.Cc[unix.VEOF]}
		}
		return err
	})
	if err != nil || eof == nil {
		return err
	}
	_, err = t.master.Write(eof)
	return err
}

// control runs f on the master without taking it out of non-blocking mode.
func (t *terminal) control(f func(fd int) error) error {
	raw, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// setModes applies the client's terminal modes (RFC 4254, 8) to the new
// terminal; unknown ones are skipped, as the RFC has it.
func (t *terminal) setModes(encoded []byte) error {
	if len(encoded) == 0 {
		return nil
	}
	mode, err := unix.IoctlGetTermios(t.slave, unix.TCGETS)
	if err != nil {
		return err
	}
	for len(encoded) >= 5 && encoded[0] != 0 && encoded[0] < 160 {
		setMode(mode, encoded[0], binary.BigEndian.Uint32(encoded[1:]))
		encoded = encoded[5:]
	}
	if len(encoded) > 0 && encoded[0] != 0 && encoded[0] < 160 {
		return errors.New("terminal modes are cut off")
	}
	return unix.IoctlSetTermios(t.slave, unix.TCSETS, mode)
}

func setMode(mode *unix.Termios, opcode byte, value uint32) {
	if i, ok := controlChars[opcode]; ok {
		mode.Cc[i] = byte(value) // 255 means none in the RFC, 0 in Linux
		if value == 255 {
			mode.Cc[i] = 0
		}
		return
	}
	f, ok := modeFlags[opcode]
	if !ok {
		return
	}
	word := f.word(mode)
	if value == 0 {
		*word &^= f.bit
	} else {
		*word |= f.bit
	}
}

var controlChars = map[byte]int{
	ssh.VINTR: unix.VINTR, ssh.VQUIT: unix.VQUIT, ssh.VERASE: unix.VERASE, ssh.VKILL: unix.VKILL,
	ssh.VEOF: unix.VEOF, ssh.VEOL: unix.VEOL, ssh.VEOL2: unix.VEOL2, ssh.VSTART: unix.VSTART,
	ssh.VSTOP: unix.VSTOP, ssh.VSUSP: unix.VSUSP, ssh.VREPRINT: unix.VREPRINT,
	ssh.VWERASE: unix.VWERASE, ssh.VLNEXT: unix.VLNEXT, ssh.VDISCARD: unix.VDISCARD,
}

type modeFlag struct {
	word func(*unix.Termios) *uint32
	bit  uint32
}

func iflag(m *unix.Termios) *uint32 { return &m.Iflag }
func oflag(m *unix.Termios) *uint32 { return &m.Oflag }
func lflag(m *unix.Termios) *uint32 { return &m.Lflag }

var modeFlags = map[byte]modeFlag{
	ssh.IGNPAR: {iflag, unix.IGNPAR}, ssh.INLCR: {iflag, unix.INLCR}, ssh.IGNCR: {iflag, unix.IGNCR},
	ssh.ICRNL: {iflag, unix.ICRNL}, ssh.IUCLC: {iflag, unix.IUCLC}, ssh.IXON: {iflag, unix.IXON},
	ssh.IXANY: {iflag, unix.IXANY}, ssh.IXOFF: {iflag, unix.IXOFF}, ssh.IMAXBEL: {iflag, unix.IMAXBEL},
	ssh.IUTF8: {iflag, unix.IUTF8},
	ssh.ISIG:  {lflag, unix.ISIG}, ssh.ICANON: {lflag, unix.ICANON}, ssh.ECHO: {lflag, unix.ECHO},
	ssh.ECHOE: {lflag, unix.ECHOE}, ssh.ECHOK: {lflag, unix.ECHOK}, ssh.ECHONL: {lflag, unix.ECHONL},
	ssh.NOFLSH: {lflag, unix.NOFLSH}, ssh.TOSTOP: {lflag, unix.TOSTOP}, ssh.IEXTEN: {lflag, unix.IEXTEN},
	ssh.ECHOCTL: {lflag, unix.ECHOCTL}, ssh.ECHOKE: {lflag, unix.ECHOKE},
	ssh.OPOST: {oflag, unix.OPOST}, ssh.ONLCR: {oflag, unix.ONLCR}, ssh.OCRNL: {oflag, unix.OCRNL},
	ssh.ONOCR: {oflag, unix.ONOCR}, ssh.ONLRET: {oflag, unix.ONLRET},
}
