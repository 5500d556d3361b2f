//go:build lab

package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/firecracker"
	"banger/internal/helper"
	"banger/internal/installed"
	"banger/internal/paths"
)

// These tests run as root on a host with an installed banger and drive the
// real helper, systemd, jailer and Firecracker.

// asOwner makes the test binary, started again as the owner, connect to a
// socket and say how that went.
const asOwner = "BANGER_TEST_CONNECT"

func TestMain(m *testing.M) {
	if path := os.Getenv(asOwner); path != "" {
		c, err := net.Dial("unix", path)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		c.Close()
		os.Exit(0)
	}
	if r := os.Getenv(asVictim); r != "" {
		if err := beVictim(r); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func connectAs(t *testing.T, uid, gid int, path string) error {
	t.Helper()
	dir := t.TempDir()
	self := filepath.Join(dir, "self")
	raw, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = errors.Join(os.WriteFile(self, raw, 0o755), os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = []string{asOwner + "=" + path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

type life struct {
	t      *testing.T
	c      *helper.Client
	record installed.Record
	id     string
	slot   helper.Slot
	dir    string // below the state directory
	blob   helper.Blob
	root   string
	fc     *firecracker.Client
	pid    int
}

var (
	labBus     = &systemBus{}
	labSystemd = &systemd{labBus, vmKind}
	labChecks  = &systemd{labBus, checkKind}
)

// sudden is how long the remains of a VMM may stay. On an idle host it takes a
// quarter of a second, and a loop goes when udev too has closed it; the lab is
// emulated and shared.
const sudden = 4 * time.Second

func newLife(t *testing.T) *life {
	t.Helper()
	record, err := installed.Load(paths.InstallFile)
	if err != nil {
		t.Fatal(err)
	}
	var b [6]byte
	_, _ = rand.Read(b[:])
	l := &life{t: t, c: helper.NewClient(paths.HelperSocket), record: record, id: hex.EncodeToString(b[:])}
	l.dir = "vms/" + l.id
	l.must(os.Mkdir(filepath.Join(paths.StateDir, l.dir), 0o700))
	t.Cleanup(func() { l.must(os.RemoveAll(filepath.Join(paths.StateDir, l.dir))) })
	l.file("base", 64<<20, nil)
	l.file("overlay", 65<<20, nil)
	kernel := []byte("no kernel")
	if p := os.Getenv("BANGER_LAB_KERNEL"); p != "" {
		kernel, err = os.ReadFile(p)
		l.must(err)
	}
	l.file("kernel", int64(len(kernel)), kernel)
	l.blob, err = l.c.PutBlob(t.Context(), l.dir+"/kernel")
	l.must(err)
	t.Cleanup(func() { // lives beside this one have the same blob
		if err := os.Remove(filepath.Join(paths.BlobDir, l.blob.SHA256)); !errors.Is(err, os.ErrNotExist) {
			l.must(err)
		}
	})
	l.slot, err = l.c.Reserve(t.Context(), l.id)
	l.must(err)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		l.must(l.c.Kill(ctx, l.id))
		l.must(l.c.Release(ctx, l.id))
		if left := l.left(); len(left) > 0 {
			t.Errorf("left after release: %q", left)
		}
	})
	return l
}

func (l *life) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *life) file(name string, size int64, content []byte) {
	l.t.Helper()
	path := filepath.Join(paths.StateDir, l.dir, name)
	l.must(os.WriteFile(path, content, 0o600))
	l.must(os.Truncate(path, size))
	l.must(os.Chown(path, l.record.UID, l.record.GID))
}

func (l *life) timed(what string, f func() error) {
	l.t.Helper()
	start := time.Now()
	err := f()
	l.t.Logf("%-12s %6.1f ms", what, float64(time.Since(start).Microseconds())/1000)
	l.must(err)
}

func (l *life) attach() {
	l.t.Helper()
	l.timed("vm.attach", func() error {
		_, err := l.c.Attach(l.t.Context(), helper.AttachRequest{ID: l.id, Base: l.dir + "/base", Overlay: l.dir + "/overlay"})
		return err
	})
}

func (l *life) launchRequest() helper.LaunchRequest {
	return helper.LaunchRequest{ID: l.id, Kernel: l.blob.SHA256, Initrd: l.blob.SHA256, VCPU: 1, MemoryMiB: 256}
}

func (l *life) launch() {
	l.t.Helper()
	l.timed("vm.launch", func() error {
		out, err := l.c.Launch(l.t.Context(), l.launchRequest())
		l.root = out.Root
		return err
	})
	l.fc = firecracker.New(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.root+paths.JailAPI)
	}, new(firecracker.Calls))
	raw, err := os.ReadFile(l.root + "/firecracker.pid")
	l.must(err)
	l.pid, err = strconv.Atoi(strings.TrimSpace(string(raw)))
	l.must(err)
}

func (l *life) configure() {
	l.t.Helper()
	ctx := l.t.Context()
	l.must(l.fc.AddDrive(ctx, firecracker.Drive{ID: "rootfs", Path: paths.JailRootfs, Cache: "Writeback"}))
	l.must(l.fc.SetVsock(ctx, firecracker.Vsock{CID: 3, Path: paths.JailVsock}))
}

// left lists what exists of the VM.
func (l *life) left() (out []string) {
	for _, d := range disksOf(l.id) {
		if _, err := l.dm().status(d.name()); !errors.Is(err, fs.ErrNotExist) {
			out = append(out, fmt.Sprint(d.role, err))
		}
	}
	entries, _ := os.ReadDir("/sys/block")
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join("/sys/block", e.Name(), "loop/backing_file"))
		if err == nil && strings.Contains(string(raw), l.dir) {
			out = append(out, e.Name())
		}
	}
	if _, err := os.Lstat(paths.JailDir + "/" + l.id); err == nil {
		out = append(out, "jail")
	}
	if _, err := net.InterfaceByName(tapName(l.id)); err == nil {
		out = append(out, "tap")
	}
	for family, what := range map[string]string{"bridge": "element", "inet": "nat element"} {
		word := tapName(l.id)
		if address, ok := l.record.GuestAddress(l.slot.Slot); ok && family == "inet" {
			word = address.Addr().String()
		}
		rules, err := exec.Command("nft", "list", "table", family, tableName).Output()
		if err == nil && slices.Contains(strings.FieldsFunc(string(rules), func(r rune) bool { return strings.ContainsRune(" ,\"", r) }), word) {
			out = append(out, what)
		}
	}
	if p, err := labSystemd.phase(context.Background(), l.id); err != nil || p != unitGone {
		out = append(out, fmt.Sprint("unit ", p, err))
	}
	if p, err := labChecks.phase(context.Background(), l.id); err != nil || p != unitGone {
		out = append(out, fmt.Sprint("check ", p, err))
	}
	if raw, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(raw), l.id) {
		out = append(out, "mount")
	}
	if l.pid > 0 && syscall.Kill(l.pid, 0) == nil {
		out = append(out, "process")
	}
	return out
}

func (l *life) gone(within time.Duration) {
	l.t.Helper()
	start := time.Now()
	for {
		left := l.left()
		if len(left) == 0 {
			l.t.Logf("all gone after %.1f ms", float64(time.Since(start).Microseconds())/1000)
			return
		}
		if time.Since(start) > within {
			l.t.Fatalf("after %s there is still %q", within, left)
		}
		time.Sleep(10 * time.Millisecond) // a dozen kinds of objects, no common event
	}
}

func code(err error) string {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Code
	}
	return fmt.Sprint(err)
}

func TestLabLifeAndSudden(t *testing.T) {
	l := newLife(t)
	l.attach()
	l.attach() // the same again is fine
	l.launch()
	l.checkSandbox()
	if err := connectAs(t, l.record.UID, l.record.GID, l.root+paths.JailAPI); err != nil {
		t.Errorf("owner cannot connect: %v", err)
	}
	if err := connectAs(t, 65534, 65534, l.root+paths.JailAPI); err == nil {
		t.Error("a stranger can connect")
	}
	if err := l.c.Handover(t.Context(), l.id); code(err) != api.CodeConflict {
		t.Errorf("handover before configuration: %v", err)
	}
	if err := l.c.Cleanup(t.Context(), l.id); code(err) != api.CodeConflict {
		t.Errorf("cleanup of a running VM: %v", err)
	}
	if err := l.c.Release(t.Context(), l.id); code(err) != api.CodeConflict {
		t.Errorf("release of a running VM: %v", err)
	}
	if _, err := l.c.Launch(t.Context(), l.launchRequest()); code(err) != api.CodeConflict {
		t.Errorf("second launch: %v", err)
	}
	l.configure()
	l.timed("vm.handover", func() error { return l.c.Handover(t.Context(), l.id) })
	l.checkSealed()
	l.must(l.c.Handover(t.Context(), l.id)) // the same again is fine
	if err := connectAs(t, l.record.UID, l.record.GID, l.root+paths.JailVsock); err != nil {
		t.Errorf("owner cannot connect to vsock: %v", err)
	}
	if os.Getenv("BANGER_LAB_KERNEL") != "" {
		l.must(l.fc.SetBoot(t.Context(), firecracker.Boot{Kernel: paths.JailKernel, Args: "console=ttyS0 reboot=k panic=-1"}))
		l.timed("start", func() error { return l.fc.Start(t.Context()) })
	}
	l.must(syscall.Kill(l.pid, syscall.SIGKILL))
	l.gone(sudden)
	e, err := readExit(InstalledPlaces(), l.id)
	if err != nil || e.Result != "signal" || e.ExitCode != "killed" || e.Status != "KILL" {
		t.Errorf("exit record %+v, %v", e, err)
	}
	l.timed("vm.cleanup", func() error { return l.c.Cleanup(t.Context(), l.id) })
}

// checkSealed looks that the VMM owns nothing in its jail in which something can
// be made, or which can be filled.
func (l *life) checkSealed() {
	l.t.Helper()
	l.must(filepath.WalkDir(l.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		l.must(unix.Lstat(path, &st))
		if (d.IsDir() || d.Type().IsRegular()) && st.Uid != 0 {
			l.t.Errorf("%s belongs to uid %d", path, st.Uid)
		}
		if d.IsDir() && (st.Mode&0o7777 != 0o710 || st.Gid != 0) {
			l.t.Errorf("%s has mode %o, gid %d", path, st.Mode&0o7777, st.Gid)
		}
		return nil
	}))
}

func (l *life) checkSandbox() {
	t := l.t
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.pid))
	l.must(err)
	status := map[string]string{}
	for line := range strings.SplitSeq(string(raw), "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok {
			status[k] = strings.TrimSpace(v)
		}
	}
	uid := strconv.Itoa(l.slot.UID)
	all := strings.Join([]string{uid, uid, uid, uid}, "\t")
	for k, want := range map[string]string{"Name": "firecracker", "Uid": all, "Gid": all, "Groups": "",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "NoNewPrivs": "1"} {
		if status[k] != want {
			t.Errorf("%s is %q, want %q", k, status[k], want)
		}
	}
	if status["Seccomp"] != "2" || !strings.HasSuffix(status["NSpid"], "\t1") {
		t.Errorf("seccomp %q, NSpid %q", status["Seccomp"], status["NSpid"])
	}
	for _, ns := range []string{"mnt", "net", "pid"} {
		mine, err := os.Readlink("/proc/1/ns/" + ns)
		l.must(err)
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", l.pid, ns))
		l.must(err)
		if mine == theirs {
			t.Errorf("%s namespace is the host's", ns)
		}
	}
	raw, err = os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", l.pid))
	l.must(err)
	// Only lo, and tap0 until the handover.
	n := strings.Count(strings.TrimSpace(string(raw)), "\n")
	if strings.Contains(string(raw), nicName) {
		n--
	}
	if n != 2 {
		t.Errorf("network namespace is not empty: %s", raw)
	}
	raw, err = os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", l.pid))
	l.must(err)
	if want := "0::/banger.slice/" + unitName(l.id) + "\n"; string(raw) != want {
		t.Errorf("cgroup %q, want %q", raw, want)
	}
}

func TestLabKill(t *testing.T) {
	l := newLife(t)
	for range 3 { // the same VM again and again
		l.attach()
		l.launch()
		l.configure()
		l.timed("vm.handover", func() error { return l.c.Handover(t.Context(), l.id) })
		l.timed("vm.kill", func() error { return l.c.Kill(t.Context(), l.id) })
		l.gone(sudden)
		l.timed("vm.cleanup", func() error { return l.c.Cleanup(t.Context(), l.id) })
	}
	l.must(l.c.Kill(t.Context(), l.id)) // idempotent
}

// A VMM that dies before handover has no deferred removal yet.
func TestLabDeathBeforeHandover(t *testing.T) {
	l := newLife(t)
	l.attach()
	l.launch()
	l.must(syscall.Kill(l.pid, syscall.SIGKILL))
	l.gone(sudden)
}

func TestLabUnknownBlob(t *testing.T) {
	l := newLife(t)
	l.attach()
	r := l.launchRequest()
	r.Initrd = strings.Repeat("0", 64)
	if _, err := l.c.Launch(t.Context(), r); code(err) != helper.CodeBlobUnknown {
		t.Errorf("got %v", err)
	}
	if left := strings.Join(l.left(), " "); strings.Contains(left, "jail") || strings.Contains(left, "unit") {
		t.Errorf("left %q", left)
	}
}

// A caller that goes away takes its launch with it.
func TestLabCancelledLaunch(t *testing.T) {
	l := newLife(t)
	l.attach()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	if _, err := l.c.Launch(ctx, l.launchRequest()); !errors.Is(err, context.DeadlineExceeded) {
		t.Skipf("launch was faster: %v", err)
	}
	l.must(l.c.Cleanup(t.Context(), l.id)) // waits for the undo
	l.gone(sudden)
}

func TestLabOnlyTheOwnerReachesTheHelper(t *testing.T) {
	record, err := installed.Load(paths.InstallFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := connectAs(t, record.UID, record.GID, paths.HelperSocket); err != nil {
		t.Errorf("the owner: %v", err)
	}
	for _, uid := range []int{65534, record.UIDBase} { // a stranger, a VMM
		if connectAs(t, uid, uid, paths.HelperSocket) == nil {
			t.Errorf("uid %d reaches the helper", uid)
		}
	}
}

func TestLabHostCheck(t *testing.T) {
	f, err := helper.NewClient(paths.HelperSocket).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{f.KVM, f.DeviceMapper, f.Loop, f.Tun, f.Jail, f.Tree, strings.Join(f.Foreign, " ")} {
		if s != "" {
			t.Error(s)
		}
	}
}

// host.check tells how a VMM is confined: one that has not got its filter yet is
// told as weak, and never for a thread of KVM, which has all rights.
func TestLabConfinement(t *testing.T) {
	l := newLife(t)
	l.attach()
	l.launch()
	f, err := l.c.Check(t.Context())
	l.must(err)
	i := slices.IndexFunc(f.VMMs, func(v helper.VMM) bool { return v.ID == l.id })
	if i < 0 || strings.Contains(f.VMMs[i].Weak, "Cap") || strings.Contains(f.VMMs[i].Weak, "id is") {
		t.Errorf("%+v", f.VMMs)
	}
	if !slices.Contains(f.Jails, l.id) || !slices.Contains(f.Slots, l.id) {
		t.Errorf("jails %v, slots %v", f.Jails, f.Slots)
	}
	l.must(l.c.Kill(t.Context(), l.id))
	l.gone(sudden)
}

// The helper is restarted between any two verbs: nothing it forgets matters.
func TestLabHelperRestart(t *testing.T) {
	l := newLife(t)
	restart := func() {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "systemctl", "restart", "banger-helper.service").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	l.attach()
	restart()
	l.launch()
	restart()
	l.configure()
	l.must(l.c.Handover(t.Context(), l.id))
	restart()
	l.checkSandbox()
	l.must(l.c.Kill(t.Context(), l.id))
	l.gone(sudden)
}

// With the helper down, systemd alone cleans up.
func TestLabHelperDown(t *testing.T) {
	l := newLife(t)
	l.attach()
	l.launch()
	if out, err := exec.CommandContext(t.Context(), "systemctl", "stop", "banger-helper.service").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l.must(syscall.Kill(l.pid, syscall.SIGKILL))
	l.gone(sudden)
}
