//go:build e2e && hostile

package hostile

import (
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/paths"
	"banger/test/host"
)

// damage is done to a file of a stopped VM.
type damage struct {
	name string
	disk string // work.ext4 or overlay.cow
	do   func(t *testing.T, file string)
	// says is in what the start then says; nothing if it works all the same.
	says []string
	// mends is whether --repair does.
	mends bool
}

// TestDamagedDisks gives starts disks that a guest, or a bad day, could have
// made: each ends with a sentence that names the next step, what can be mended
// is, and other VMs notice nothing.
func TestDamagedDisks(t *testing.T) {
	host.ImportTiny(t, "disk-tiny")
	t.Cleanup(func() { host.Banger(t, "image", "delete", "disk-tiny") })
	for _, name := range []string{"victim", "neighbour"} {
		t.Cleanup(func() { host.Banger(t, "vm", "delete", "--force", name) })
	}
	inventory, files := host.Inventory(t), host.VMFiles(t)
	host.Must(t, "vm", "run", "-d", "--name", "neighbour", "--image", "disk-tiny", "--memory", "128M")
	others := keepUsing(t, "neighbour")
	host.Must(t, "vm", "run", "-d", "--name", "victim", "--image", "disk-tiny", "--memory", "128M", "--disk", "512M")
	host.Must(t, "vm", "exec", "victim", "--", "sh", "-c", "echo kept > /root/kept; echo kept > /kept; sync")
	host.Must(t, "vm", "stop", "victim")
	dir := paths.StateDir + "/vms/" + showVM(t, "victim").ID + "/"
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) { d.try(t, dir+d.disk) })
	}
	others(t)
	host.Must(t, "vm", "delete", "victim")
	host.Must(t, "vm", "delete", "--force", "neighbour")
	host.Eventually(t, 20*time.Second, func() error {
		return errors.Join(differs("left behind", inventory, host.Inventory(t)), differs("files", files, host.VMFiles(t)))
	})
}

func damages() []damage {
	const damaged = "--repair"
	return []damage{
		{"no superblock", "work.ext4", garbage(1024, 1024), []string{damaged}, true},
		{"inodes of garbage", "work.ext4", inodes, []string{damaged}, true},
		{"garbage in the first blocks", "work.ext4", garbage(4096, 256<<10), nil, false},
		{"a journal of garbage", "work.ext4", journal, nil, true},
		{"garbage everywhere", "work.ext4", garbage(0, 64<<20), []string{damaged}, false},
		{"half the size", "work.ext4", truncate(256 << 20), nil, true},
		{"an odd size", "work.ext4", truncate(512<<20 + 1), []string{"multiple of"}, false},
		{"nothing in it", "work.ext4", truncate(0), nil, false},
		{"no snapshot in the overlay", "overlay.cow", garbage(0, 4096), []string{"overlay", "hint:"}, false},
		{"a symlink to the host", "work.ext4", symlinked, []string{""}, false},
	}
}

// try damages a copy of the disk, so that the next one finds it whole.
func (d damage) try(t *testing.T, file string) {
	host.Root(t, "cp", "--preserve=all", "--sparse=always", file, file+".whole")
	defer host.Root(t, "mv", file+".whole", file)
	d.do(t, file)
	begun := time.Now()
	r := host.Banger(t, "vm", "start", "victim")
	t.Logf("start: exit %d after %s: %s", r.Code, time.Since(begun).Round(time.Millisecond), strings.TrimSpace(r.Stderr))
	if d.says != nil && r.Code == 0 {
		t.Error("it started")
	}
	for _, word := range d.says {
		if r.Code != 0 && !strings.Contains(r.Stderr, word) {
			t.Errorf("it does not say %q", word)
		}
	}
	if r.Code != 0 {
		if v := showVM(t, "victim"); v.State != "failed" && v.State != "stopped" || host.PID("banger-vm-"+v.ID+".service") != 0 {
			t.Errorf("it is %s", v.State)
		}
		begun = time.Now()
		r = host.Banger(t, "vm", "start", "--repair", "victim")
		t.Logf("start --repair: exit %d after %s: %s", r.Code, time.Since(begun).Round(time.Millisecond), strings.TrimSpace(r.Stderr))
	}
	if d.mends && r.Code != 0 {
		t.Error("it is not mended")
	}
	if r.Code == 0 {
		host.Must(t, "vm", "exec", "victim", "--", "sh", "-c", "echo x > /root/x; cat /kept")
		host.Must(t, "vm", "kill", "victim")
	}
	host.WantGone(t, showVM(t, "victim").ID, 20*time.Second)
}

func garbage(from, bytes int64) func(*testing.T, string) {
	return func(t *testing.T, file string) {
		t.Helper()
		raw := make([]byte, bytes)
		source := rand.NewChaCha8([32]byte{byte(from), byte(bytes >> 12)}) // the same in each run
		_, _ = source.Read(raw)
		write(t, file, raw, from)
	}
}

func write(t *testing.T, file string, raw []byte, at int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(raw, at)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// journal makes a journal that wants to be replayed, of blocks that are none.
func journal(t *testing.T, file string) {
	t.Helper()
	block := lastField(host.Root(t, "debugfs", "-R", "bmap <8> 0", file))
	size := blockSize(t, file)
	at, err := strconv.ParseInt(block, 10, 64)
	if err != nil || at == 0 {
		t.Fatalf("the journal is at %q", block)
	}
	garbage((at+1)*size, 16*size)(t, file)
	write(t, file, []byte{0, 0, 0, 1}, at*size+28) // s_start: where to replay from
	host.Root(t, "debugfs", "-w", "-R", "feature needs_recovery", file)
}

// inodes spoils those of the first directories, in a filesystem that wants to be
// looked at.
func inodes(t *testing.T, file string) {
	t.Helper()
	_, after, _ := strings.Cut(host.Root(t, "debugfs", "-R", "imap <2>", file), "located at block ")
	number, _, _ := strings.Cut(after, ",")
	at, err := strconv.ParseInt(number, 10, 64)
	if err != nil || at == 0 {
		t.Fatalf("inodes are at %q", after)
	}
	garbage(at*blockSize(t, file), 4096)(t, file)
	host.Root(t, "debugfs", "-w", "-R", "ssv state 0", file)
}

func blockSize(t *testing.T, file string) int64 {
	t.Helper()
	for line := range strings.Lines(host.Root(t, "dumpe2fs", "-h", file)) {
		if n, ok := strings.CutPrefix(line, "Block size:"); ok {
			if size, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64); err == nil {
				return size
			}
		}
	}
	t.Fatal("dumpe2fs tells no block size")
	return 0
}

func lastField(s string) string {
	fields := strings.Fields(s)
	if len(fields) == 0 {
		return ""
	}
	return fields[len(fields)-1]
}

func truncate(size int64) func(*testing.T, string) {
	return func(t *testing.T, file string) {
		t.Helper()
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
	}
}

func symlinked(t *testing.T, file string) {
	t.Helper()
	if err := errors.Join(os.Remove(file), os.Symlink("/etc/shadow", file)); err != nil {
		t.Fatal(err)
	}
}
