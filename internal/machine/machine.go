// Package machine keeps the appliance: a Debian virtual machine under QEMU in
// which banger is installed as on any host. It serves hosts without usable
// KVM, root or device-mapper, and it is the laboratory of banger's own tests.
//
// A machine is a directory; nothing about it is kept elsewhere:
//
//	machine.json          what it is made of and how large it is
//	run.json              the QEMU process that runs it, absent when stopped
//	base.raw              the appliance's disk, a hard link into the cache
//	installed.qcow2       banger, its kernel and its default image, over base.raw
//	disk.qcow2            everything written since, over installed.qcow2
//	vmlinuz, initrd.img   the appliance's kernel, hard links
//	seed.tar              keys, given to the guest as a drive at each boot
//	id_ed25519            the key that opens root and banger in the guest
//	ssh_config            how to reach it: ssh -F ssh_config banger-machine
//	known_hosts           the guest's host key, made here: nothing is trusted on first use
//	console.log qemu.log  what the guest and QEMU said
//
// Since links and not paths tie a machine to the cache, the cache can be
// emptied at any time. QEMU runs in the machine's directory and outlives the
// command that started it.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"banger/api"
)

// DefaultName is the machine that people get when they name none.
const DefaultName = "default"

// Users that a machine's SSH server lets in.
const (
	Root  = "root"
	Owner = "dev" // banger is installed for this user
)

// Progress is told about each step that begins, in words for a person. It may
// be nil.
type Progress func(step string)

func (p Progress) step(format string, args ...any) {
	if p != nil {
		p(fmt.Sprintf(format, args...))
	}
}

// Machine is a handle; the machine it names need not exist.
type Machine struct {
	Name string
	// Dir holds everything about the machine.
	Dir string
}

var validName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`) })

// New returns the handle of the machine called name; "" means DefaultName.
func New(name string) (*Machine, error) {
	if name == "" {
		name = DefaultName
	}
	if !validName().MatchString(name) {
		return nil, api.BadRequest("%q is no machine name", name).
			WithHint("use up to 32 of a-z, 0-9 and -, with no hyphen at either end")
	}
	data, err := xdgDir("XDG_DATA_HOME", ".local/share")
	if err != nil {
		return nil, err
	}
	return &Machine{Name: name, Dir: filepath.Join(data, "banger", "machine", name)}, nil
}

func xdgDir(variable, fallback string) (string, error) {
	if dir := os.Getenv(variable); filepath.IsAbs(dir) {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("cannot find a place for machines: %w", err)
	}
	return filepath.Join(home, fallback), nil
}

// Exists tells whether the machine was initialised.
func (m *Machine) Exists() (bool, error) {
	_, err := os.Stat(m.path("machine.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (m *Machine) path(name string) string { return filepath.Join(m.Dir, name) }

// SSHCommand returns the ssh command that runs argv in the machine as user, or
// a login shell when argv is empty. Unlike with ssh itself the words of argv
// arrive as they are: a shell script is given as "sh", "-c", script. Where
// standard input is a terminal, ask for one in the machine with tty.
func (m *Machine) SSHCommand(ctx context.Context, user string, tty bool, argv ...string) *exec.Cmd {
	args := []string{"-F", m.path("ssh_config"), "-l", user}
	if tty {
		args = append(args, "-t")
	} else {
		args = append(args, "-T")
	}
	args = append(args, hostAlias)
	if len(argv) > 0 {
		args = append(args, "--", quoteArgv(argv))
	}
	return exec.CommandContext(ctx, "ssh", args...)
}

// hostAlias is the name of the machine in its ssh_config and known_hosts. Each
// machine has its own files, so one name serves all of them.
const hostAlias = "banger-machine"

// quoteArgv writes argv for the shell that sshd hands the command to.
func quoteArgv(argv []string) string {
	var b strings.Builder
	for i, word := range argv {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("'" + strings.ReplaceAll(word, "'", `'\''`) + "'")
	}
	return b.String()
}
