//go:build e2e

package hostile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/paths"
)

// facts are what the test tells the VMM of the host, so that it need not guess.
type facts struct {
	Other string // root of another VM's jail
	UID   int    // of the other VM
	Net   string // the bridge's address
}

// attempt is one thing that must fail. Attempts run in a process beside the VMM,
// since the filter of system calls kills who asks for what it does not hold.
type attempt struct {
	name string
	do   func(facts) error
}

// result is how an attempt ended; an empty error means that it succeeded.
type result struct {
	Name, Err string
	Refused   bool // by the host: else the attempt itself was wrong, and shows nothing
}

// refusals are what the host says no with: there is no right to it, or no such thing.
var refusals = []error{unix.EPERM, unix.EACCES, unix.ENOENT, unix.ESRCH, unix.EAFNOSUPPORT, unix.ECONNREFUSED}

const (
	attemptEnv  = "HOSTILE_ATTEMPT" // number of the first attempt, or spinning
	factsEnv    = "HOSTILE_FACTS"
	attemptTime = time.Minute
	spinning    = "spin" // for ever
)

// allowed are controls: what a VMM can do, which shows that the others fail for
// a reason.
var allowed = []attempt{
	{"control: its own disk", func(facts) error { return opens("/rootfs", unix.O_RDWR) }},
	{"control: KVM", func(facts) error { return opens("/dev/kvm", unix.O_RDWR) }},
	{"control: read its kernel", func(facts) error { return opens(paths.JailKernel, unix.O_RDONLY) }},
	{"control: its own socket", func(facts) error { return dials(paths.JailVsock) }},
}

var attempts = []attempt{
	// Files. The names are the host's; in the jail they must mean nothing.
	{"list its jail", func(facts) error { _, err := os.ReadDir("/"); return err }},
	{"leave by ..", func(facts) error { return opens("/../../../etc/passwd", unix.O_RDONLY) }},
	{"host: /etc/passwd", func(facts) error { return opens("/etc/passwd", unix.O_RDONLY) }},
	{"host: /etc/shadow", func(facts) error { return opens("/etc/shadow", unix.O_RDONLY) }},
	{"host: /usr/bin", func(facts) error { return opens("/usr/bin", unix.O_PATH) }},
	{"host: state of banger", func(facts) error { return opens(paths.StateDir, unix.O_PATH) }},
	{"host: /sys", func(facts) error { return opens("/sys/kernel", unix.O_PATH) }},
	{"host: /proc", func(facts) error { return opens("/proc/self/status", unix.O_RDONLY) }},
	{"host: /proc/1/root", func(facts) error { return opens("/proc/1/root", unix.O_PATH) }},
	{"host: /dev/mem", func(facts) error { return opens("/dev/mem", unix.O_RDONLY) }},
	{"host: /dev/mapper", func(facts) error { return opens("/dev/mapper/control", unix.O_RDWR) }},
	{"another jail", func(f facts) error { return opens(f.Other+paths.JailKernel, unix.O_RDONLY) }},
	{"faults of its memory, by node", func(facts) error { return opens("/dev/userfaultfd", unix.O_RDWR) }},
	{"by file handle", func(facts) error { return byHandle() }},

	// Its own jail, sealed.
	{"make a file in /", func(facts) error { return makes("/x") }},
	{"make a file in /run", func(facts) error { return makes("/run/x") }},
	{"make a file in /dev", func(facts) error { return makes("/dev/x") }},
	{"make a file in /dev/net", func(facts) error { return makes("/dev/net/x") }},
	{"make a file without a name", func(facts) error { return opens("/run", unix.O_TMPFILE|unix.O_RDWR) }},
	{"make a directory", func(facts) error { return os.Mkdir("/run/x", 0o700) }},
	{"link", func(facts) error { return os.Link(paths.JailKernel, "/run/x") }},
	{"symlink", func(facts) error { return os.Symlink("/etc", "/run/x") }},
	{"listen", func(facts) error { _, err := net.Listen("unix", "/run/x"); return err }},
	{"rename the API socket", func(facts) error { return os.Rename(paths.JailAPI, "/run/x") }},
	{"rename the kernel over the API socket", func(facts) error { return os.Rename(paths.JailKernel, paths.JailAPI) }},
	{"remove the API socket", func(facts) error { return os.Remove(paths.JailAPI) }},
	{"remove its disk's node", func(facts) error { return os.Remove("/rootfs") }},
	{"write its kernel", func(facts) error { return opens(paths.JailKernel, unix.O_WRONLY) }},
	{"write its initrd", func(facts) error { return opens(paths.JailInitrd, unix.O_WRONLY) }},
	{"write its program", func(facts) error { return opens("/firecracker", unix.O_WRONLY) }},
	{"write its pid file", func(facts) error { return opens("/firecracker.pid", unix.O_WRONLY) }},
	{"cut its kernel", func(facts) error { return unix.Truncate(paths.JailKernel, 0) }},
	{"chmod /", func(facts) error { return os.Chmod("/", 0o777) }},
	{"chmod /run", func(facts) error { return os.Chmod("/run", 0o777) }},
	{"chmod its kernel", func(facts) error { return os.Chmod(paths.JailKernel, 0o666) }},
	{"chown /run", func(facts) error { return os.Chown("/run", os.Getuid(), os.Getgid()) }},
	{"give its socket away", func(facts) error { return os.Chown(paths.JailAPI, 0, 0) }},
	{"an ACL for /run", func(facts) error { return unix.Setxattr("/run", "system.posix_acl_access", []byte{2, 0, 0, 0}, 0) }},

	// Sockets.
	{"bangerd's socket", func(facts) error { return dials("/run/banger/bangerd.sock") }},
	{"the helper's socket", func(facts) error { return dials(paths.HelperSocket) }},
	{"systemd's socket", func(facts) error { return dials("/run/systemd/private") }},
	{"the system bus", func(facts) error { return dials("/run/dbus/system_bus_socket") }},
	{"the journal's socket", func(facts) error { return dials("/run/systemd/journal/stdout") }},
	{"an abstract socket", func(facts) error { return dials("@/org/freedesktop/systemd1/notify") }},
	{"another VM's API", func(f facts) error { return dials(f.Other + paths.JailAPI) }},

	// Network: a namespace of its own with nothing in it.
	{"TCP to the bridge", func(f facts) error { return connects("tcp", f.Net+":53") }},
	{"TCP outside", func(facts) error { return connects("tcp", "192.0.2.1:80") }},
	{"UDP outside", func(facts) error { return connects("udp", "192.0.2.1:53") }},
	{"packets", func(facts) error { return socket(unix.AF_PACKET, unix.SOCK_RAW) }},
	{"raw IP", func(facts) error { return socket(unix.AF_INET, unix.SOCK_RAW) }},
	{"vsock of the host", func(facts) error { return socket(unix.AF_VSOCK, unix.SOCK_STREAM) }},
	{"crypto sockets", func(facts) error { return socket(unix.AF_ALG, unix.SOCK_SEQPACKET) }},
	{"netlink", func(facts) error { return socket(unix.AF_NETLINK, unix.SOCK_RAW) }},
	{"frames past the stack", func(facts) error { return socket(unix.AF_XDP, unix.SOCK_RAW) }},
	{"another tap", func(facts) error { return tap("tap9") }},

	// Becoming somebody, making things of the kernel.
	{"become root", func(facts) error { return unix.Setresuid(0, 0, 0) }},
	{"become another VM", func(f facts) error { return unix.Setresuid(f.UID, f.UID, f.UID) }},
	{"another group", func(facts) error { return unix.Setresgid(0, 0, 0) }},
	{"more groups", func(facts) error { return unix.Setgroups([]int{0}) }},
	{"a capability", func(facts) error { return raise() }},
	{"chroot", func(facts) error { return unix.Chroot("/run") }},
	{"pivot_root", func(facts) error { return unix.PivotRoot("/", "/run") }},
	{"mount proc", func(facts) error { return unix.Mount("proc", "/run", "proc", 0, "") }},
	{"mount tmpfs", func(facts) error { return unix.Mount("tmpfs", "/run", "tmpfs", 0, "") }},
	{"remount /", func(facts) error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "") }},
	{"mount, the new way", func(facts) error { _, err := unix.Fsopen("tmpfs", 0); return err }},
	{"unmount", func(facts) error { return unix.Unmount("/", unix.MNT_DETACH) }},
	{"mknod a disk", func(facts) error { return unix.Mknod("/run/sda", unix.S_IFBLK|0o600, int(unix.Mkdev(254, 0))) }},
	{"mknod /dev/mem", func(facts) error { return unix.Mknod("/run/mem", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 1))) }},
	{"a user namespace", func(facts) error { return unix.Unshare(unix.CLONE_NEWUSER) }},
	{"a mount namespace", func(facts) error { return unix.Unshare(unix.CLONE_NEWNS) }},
	{"a network namespace", func(facts) error { return unix.Unshare(unix.CLONE_NEWNET) }},
	{"a child in a user namespace", func(facts) error { return child() }},

	// Other processes.
	{"signal anybody", func(facts) error { return unix.Kill(-1, 0) }},
	{"find another process", func(facts) error { return findProcess() }},
	{"trace its own pid 1", func(facts) error { return unix.PtraceAttach(1) }},
	{"priority of others", func(facts) error { return unix.Setpriority(unix.PRIO_PROCESS, 1, -20) }},
	{"real time", func(facts) error { return realTime() }},

	// Parts of the kernel that a VMM has no use for.
	{"io_uring", func(facts) error { return calls(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&[120]byte{}))) }},
	{"bpf", func(facts) error {
		return calls(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&[128]byte{0: 1, 4: 4, 8: 4, 12: 1})), 128)
	}},
	{"perf", func(facts) error {
		return calls(unix.SYS_PERF_EVENT_OPEN, uintptr(unsafe.Pointer(&unix.PerfEventAttr{Size: 128})), 0, ^uintptr(0), ^uintptr(0), 0)
	}},
	{"keys of the kernel", func(facts) error {
		_, err := unix.AddKey("user", "x", []byte("x"), unix.KEY_SPEC_SESSION_KEYRING)
		return err
	}},
	{"a module", func(facts) error { return unix.InitModule([]byte("x"), "") }},
	{"reboot", func(facts) error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) }},
	{"the clock", func(facts) error { return unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: 1}) }},
	{"the host's name", func(facts) error { return unix.Sethostname([]byte("hostile")) }},
	{"the kernel's log", func(facts) error { _, err := unix.Klogctl(3, make([]byte, 16)); return err }},
	{"swap", func(facts) error {
		return calls(unix.SYS_SWAPON, uintptr(unsafe.Pointer(&[]byte("/rootfs\x00")[0])), 0)
	}},
	// Settings of the unit beside its filter of names.
	{"memory to write and run", func(facts) error {
		m, err := unix.Mmap(-1, 0, 4096, unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err == nil {
			_ = unix.Munmap(m)
		}
		return err
	}},
	{"written memory to run", func(facts) error {
		m, err := unix.Mmap(-1, 0, 4096, unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return nil //nolint:nilerr // the attempt is the next call
		}
		return errors.Join(unix.Mprotect(m, unix.PROT_READ|unix.PROT_EXEC), unix.Munmap(m))
	}},
	{"another personality", func(facts) error { return calls(unix.SYS_PERSONALITY, 0x0040000) }},
	{"calls of another ABI", func(facts) error { return onThread(func() error { return calls(unix.SYS_GETPID | 0x40000000) }) }},
	{"faults of its memory", func(facts) error { return calls(unix.SYS_USERFAULTFD, 0) }},
	{"larger limits", func(facts) error {
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20})
	}},
}

func opens(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

func makes(path string) error { return opens(path, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR) }

func dials(path string) error { return connects("unix", path) }

func connects(network, address string) error {
	c, err := net.DialTimeout(network, address, 5*time.Second)
	if err == nil {
		_ = c.Close()
	}
	return err
}

func socket(family, kind int) error {
	fd, err := unix.Socket(family, kind, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

func calls(number uintptr, args ...uintptr) error {
	var a [5]uintptr
	copy(a[:], args)
	if _, _, e := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], 0); e != 0 {
		return e
	}
	return nil
}

// onThread is for a call that costs the thread which makes it, and not the process:
// what the filter does about another ABI.
func onThread(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- do()
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(5 * time.Second):
		return fmt.Errorf("its thread was killed: %w", unix.EPERM)
	}
}

func tap(name string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
}

func raise() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_SYS_ADMIN, Permitted: 1 << unix.CAP_SYS_ADMIN}}
	return unix.Capset(&header, &data[0])
}

func byHandle() error {
	h := unix.NewFileHandle(1, make([]byte, 8))
	fd, err := unix.Open("/", unix.O_PATH, 0)
	if err != nil {
		return err
	}
	_, err = unix.OpenByHandleAt(fd, h, unix.O_RDONLY)
	return err
}

func child() error {
	p, err := os.StartProcess("/firecracker", []string{"firecracker"}, &os.ProcAttr{
		Env: []string{attemptEnv + "=nothing"}, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}})
	if err == nil {
		_, _ = p.Wait()
	}
	return err
}

// findProcess looks for a process of somebody else: its own are this one, pid 1
// that started it, and their threads, which are no processes.
func findProcess() error {
	for pid := 2; pid < 1<<15; pid++ {
		if pid == os.Getpid() || pid == os.Getppid() {
			continue
		}
		if err := unix.Tgkill(pid, pid, 0); err == nil || errors.Is(err, unix.EPERM) {
			return nil
		}
	}
	return unix.ESRCH
}

func realTime() error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 50}, 0)
}

var spun atomic.Uint64

// attemptMain is the process of attempts from one on: a line of JSON for each.
func attemptMain(first string) error {
	if first == spinning {
		for i := uint64(0); ; i++ {
			spun.Store(i)
		}
	}
	n, err := strconv.Atoi(first)
	if err != nil {
		return err
	}
	var known facts
	if err := json.Unmarshal([]byte(os.Getenv(factsEnv)), &known); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	for _, a := range slices.Concat(allowed, attempts)[n:] {
		r := result{Name: a.name}
		if err := a.do(known); err != nil {
			r.Err = err.Error()
			r.Refused = slices.ContainsFunc(refusals, func(no error) bool { return errors.Is(err, no) })
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	os.Exit(0)
	return nil
}

// tryAll runs every attempt.
func tryAll(known facts) (all []result, err error) {
	list := slices.Concat(allowed, attempts)
	for len(all) < len(list) {
		some, killed, err := tryFrom(len(all), known)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
		if killed && len(all) < len(list) {
			all = append(all, result{list[len(all)].name, "killed by the filter of system calls", true})
		}
	}
	return all, nil
}

func tryFrom(first int, known facts) (all []result, killed bool, err error) {
	text, err := json.Marshal(known)
	if err != nil {
		return nil, false, err
	}
	var out bytes.Buffer
	c := exec.Command("/firecracker")
	c.Env = []string{attemptEnv + "=" + strconv.Itoa(first), factsEnv + "=" + string(text)}
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, &out, os.Stderr // there is no /dev/null
	if err := c.Start(); err != nil {
		return nil, false, err
	}
	late := time.AfterFunc(attemptTime, func() { _ = c.Process.Kill() })
	defer late.Stop()
	err = c.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		killed = e.Sys().(syscall.WaitStatus).Signal() == unix.SIGSYS
	}
	if err != nil && !killed {
		return nil, false, fmt.Errorf("attempts from %d on: %w: %s", first, err, &out)
	}
	for d := json.NewDecoder(&out); d.More(); {
		var r result
		if err := d.Decode(&r); err != nil {
			return nil, false, err
		}
		all = append(all, r)
	}
	return all, killed, nil
}
