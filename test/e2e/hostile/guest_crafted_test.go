//go:build e2e && hostile

package hostile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/helper"
	"banger/internal/paths"
	"banger/test/host"
)

// crafted is a filesystem that somebody made for whoever reads it: in each field
// that a program computes with stands what that program should not believe.
type crafted struct {
	name string
	do   func(t *testing.T, f *ext4)
	// clean says that the superblock claims order, so that e2fsck believes it and
	// the guest's own kernel meets the rest.
	clean bool
}

// TestCraftedDisks gives starts work disks that a guest made to harm whoever
// checks them. Each start ends, with a word for it or with a VM that runs; the
// host's kernel reads none of them as a filesystem, and nobody else notices.
func TestCraftedDisks(t *testing.T) {
	host.ImportTiny(t, "crafted-tiny")
	t.Cleanup(func() { host.Banger(t, "image", "delete", "crafted-tiny") })
	victim := stoppedWithDisk(t, "crafted", "crafted-tiny")
	t.Cleanup(func() { host.Banger(t, "vm", "delete", "--force", "neighbour") })
	host.Must(t, "vm", "run", "-d", "--name", "neighbour", "--image", "crafted-tiny", "--memory", "128M")
	inventory := host.Inventory(t)
	calm := watchServices(t)
	mounted := watchMounts(t)
	others := keepUsing(t, "neighbour")
	plain := mkfs(t)
	for _, c := range craftedDisks() {
		t.Run(strings.ReplaceAll(c.name, "/", " "), func(t *testing.T) {
			c.try(t, plain, victim)
			mounted(t)
		})
	}
	others(t)
	calm(t)
	host.Must(t, "vm", "delete", "--force", victim.Name)
	host.Eventually(t, 20*time.Second, func() error { return differs("left behind", inventory, host.Inventory(t)) })
}

// craftedTime is for a start of a VM in an emulated lab, and a check.
const craftedTime = 3 * time.Minute

func (c crafted) try(t *testing.T, plain string, victim api.VM) {
	replaceDisk(t, victim, func(file string) {
		host.Root(t, "cp", "--sparse=always", plain, file)
		f := openExt4(t, file)
		if !c.clean {
			f.put16(f.super+0x3a, 2) // errors were seen: look at all of it
		}
		c.do(t, f)
		f.close(t)
	})
	for _, repair := range []bool{false, true} {
		code := startCrafted(t, victim, repair)
		// Of a disk that e2fsck was told to believe the guest may die: its affair.
		if code != "" && code != helper.CodeDamaged && !c.clean {
			t.Errorf("the start's code is %q: neither is it damaged, nor does it run", code)
		}
		if code == "" {
			host.Banger(t, "vm", "kill", victim.Name)
			break
		}
		if v := showVM(t, victim.Name); v.State != api.StateFailed && v.State != api.StateStopped {
			t.Errorf("it is %s", v.State)
		}
	}
	host.WantGone(t, victim.ID, 20*time.Second)
}

// startCrafted returns the code of what went wrong.
func startCrafted(t *testing.T, victim api.VM, repair bool) (code string) {
	t.Helper()
	args := []string{"vm", "start", "--json", victim.Name}
	if repair {
		args = append(args, "--repair")
	}
	begun := time.Now()
	r := host.Banger(t, args...)
	took := time.Since(begun)
	all := decode[[]struct{ Error *api.Problem }](t, r.Stdout)
	said := ""
	if len(all) == 1 && all[0].Error != nil {
		code, said = all[0].Error.Code, all[0].Error.Error()
	}
	t.Logf("repair %t: exit %d after %s: %s %.400q", repair, r.Code, took.Round(100*time.Millisecond), code, said)
	if (r.Code == 0) != (code == "") {
		t.Errorf("exit %d, %s", r.Code, r.Stdout)
	}
	if r.Code != 0 && !strings.Contains(r.Stderr, "hint: ") {
		t.Errorf("there is no hint in %q", r.Stderr)
	}
	if took > craftedTime {
		t.Errorf("it took %s", took)
	}
	return code
}

// stoppedWithDisk makes a VM with a work disk, which has run and was stopped.
func stoppedWithDisk(t *testing.T, name, image string) api.VM {
	t.Helper()
	t.Cleanup(func() { host.Banger(t, "vm", "delete", "--force", name) })
	host.Must(t, "vm", "run", "-d", "--name", name, "--image", image, "--memory", "128M", "--disk", strconv.Itoa(craftedSize>>20)+"M")
	host.Must(t, "vm", "stop", name)
	return showVM(t, name)
}

// replaceDisk puts another file in the place of a VM's work disk, as its owner
// can: what a guest can write, he can, too.
func replaceDisk(t *testing.T, v api.VM, fill func(file string)) {
	t.Helper()
	file, owner := paths.StateDir+"/vms/"+v.ID+"/work.ext4", host.Owner(t)
	fresh := file + ".fresh"
	fill(fresh)
	if err := errors.Join(os.Chown(fresh, owner.UID, owner.GID), os.Chmod(fresh, 0o600), os.Rename(fresh, file)); err != nil {
		t.Fatal(err)
	}
}

const (
	craftedSize  = 64 << 20
	craftedBlock = 4096
	craftedInode = 256
)

// mkfs makes a small filesystem without checksums, so that what is changed in it
// is not noticed by them, and with something in it.
func mkfs(t *testing.T) (file string) {
	t.Helper()
	file = t.TempDir() + "/plain.ext4"
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, craftedSize)); err != nil {
		t.Fatal(err)
	}
	host.Root(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(craftedBlock), "-I", strconv.Itoa(craftedInode), "-g", "8192",
		"-O", "^metadata_csum,^64bit,^flex_bg,^uninit_bg,has_journal,resize_inode,extent", file)
	debugfs(t, file, "mkdir a", "mkdir a/b", "mkdir a/b/c", "write /etc/debian_version one", "write /etc/debian_version two")
	return file
}

func debugfs(t *testing.T, file string, commands ...string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "debugfs", "-w", "-f", "-", file)
	c.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
}

// ext4 changes single fields of a filesystem of mkfs.
type ext4 struct {
	t     *testing.T
	file  *os.File
	super int64
}

func openExt4(t *testing.T, file string) *ext4 {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &ext4{t, f, 1024}
}

func (f *ext4) close(t *testing.T) {
	t.Helper()
	if err := f.file.Close(); err != nil {
		t.Fatal(err)
	}
}

func (f *ext4) get(at int64, n int) []byte {
	raw := make([]byte, n)
	if _, err := f.file.ReadAt(raw, at); err != nil {
		f.t.Fatal(err)
	}
	return raw
}

func (f *ext4) get32(at int64) uint32 { return binary.LittleEndian.Uint32(f.get(at, 4)) }

func (f *ext4) put(at int64, raw []byte) {
	if _, err := f.file.WriteAt(raw, at); err != nil {
		f.t.Fatal(err)
	}
}

func (f *ext4) put16(at int64, v uint16) { f.put(at, binary.LittleEndian.AppendUint16(nil, v)) }
func (f *ext4) put32(at int64, v uint32) { f.put(at, binary.LittleEndian.AppendUint32(nil, v)) }
func (f *ext4) big32(at int64, v uint32) { f.put(at, binary.BigEndian.AppendUint32(nil, v)) } // jbd2's

// or sets bits of a word of the superblock.
func (f *ext4) or(at int64, bits uint32) { f.put32(f.super+at, f.get32(f.super+at)|bits) }

// group is where the descriptor of a block group is; they are of 32 bytes.
func (f *ext4) group(n int64) int64 { return craftedBlock + 32*n }

// inode is where one of the first group is.
func (f *ext4) inode(n int64) int64 {
	return int64(f.get32(f.group(0)+8))*craftedBlock + (n-1)*craftedInode
}

// named finds an inode of a file.
func (f *ext4) named(path string) int64 {
	out := host.Root(f.t, "debugfs", "-R", "stat "+path, f.file.Name())
	_, after, _ := strings.Cut(out, "Inode:")
	fields := strings.Fields(after)
	if len(fields) == 0 {
		f.t.Fatalf("debugfs says %q of %s", out, path)
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// block is the first of an inode, by its extent.
func (f *ext4) block(inode int64) int64 { return int64(f.get32(f.inode(inode) + 40 + 12 + 8)) }

// Fields of the superblock, from its begin.
const (
	sbInodes, sbBlocks, sbFirstBlock, sbLogBlock, sbLogCluster = 0x00, 0x04, 0x14, 0x18, 0x1c
	sbBlocksPerGroup, sbInodesPerGroup, sbFirstInode           = 0x20, 0x28, 0x54
	sbInodeSize, sbCompat, sbIncompat, sbROCompat, sbGDT       = 0x58, 0x5c, 0x60, 0x64, 0xce
	sbJournal, sbOrphan, sbDescSize, sbMetaBG, sbMMPInterval   = 0xe0, 0xe8, 0xfe, 0x104, 0x166
	sbLogGroups, sbUserQuota                                   = 0x174, 0x240
)

// Fields of an inode.
const (
	inMode, inSize, inDeleted, inLinks, inSectors, inFlags, inBlock, inSizeHigh = 0, 4, 20, 26, 28, 32, 40, 108
)

const allOnes = 1<<32 - 1

func craftedDisks() []crafted {
	super := func(at int64, v uint32) func(*testing.T, *ext4) {
		return func(_ *testing.T, f *ext4) { f.put32(f.super+at, v) }
	}
	rootIs := func(mode uint16, blocks ...uint32) func(*testing.T, *ext4) {
		return func(_ *testing.T, f *ext4) {
			at := f.inode(2)
			f.put16(at+inMode, mode)
			f.put32(at+inFlags, 0)
			for i, b := range blocks {
				f.put32(at+inBlock+4*int64(i), b)
			}
		}
	}
	entryOfZero := func(_ *testing.T, f *ext4) { f.put16(f.block(2)*craftedBlock+4, 0) } // rec_len
	overlap := func(_ *testing.T, f *ext4) {
		for at := int64(0); at < 12; at += 4 { // bitmaps and inode table of the second are the first's
			f.put32(f.group(1)+at, f.get32(f.group(0)+at))
		}
	}
	loopFile := func(_ *testing.T, f *ext4) { indirectLoop(f) }
	return []crafted{
		{"blocks of 2^31 times 1 KiB", super(sbLogBlock, 0x7fffffff), false},
		{"clusters of 2^31 times 1 KiB", func(_ *testing.T, f *ext4) { f.or(sbROCompat, 0x200); f.put32(f.super+sbLogCluster, 0x7fffffff) }, false},
		{"no inodes per group", super(sbInodesPerGroup, 0), false},
		{"4 G inodes per group", super(sbInodesPerGroup, allOnes), false},
		{"4 G inodes", super(sbInodes, allOnes), false},
		{"no blocks per group", super(sbBlocksPerGroup, 0), false},
		{"4 G blocks", super(sbBlocks, allOnes), false},
		{"a first block behind the end", super(sbFirstBlock, allOnes-1), false},
		{"inodes of 64 KiB", super(sbInodeSize, 0xffff), false},
		{"a first inode behind the end", super(sbFirstInode, allOnes), false},
		{"descriptors of 64 KiB", func(_ *testing.T, f *ext4) { f.or(sbIncompat, 0x80); f.put16(f.super+sbDescSize, 0xffff) }, false},
		{"descriptors elsewhere", func(_ *testing.T, f *ext4) { f.or(sbIncompat, 0x10); f.put32(f.super+sbMetaBG, allOnes) }, false},
		{"groups of 2^255 groups", func(_ *testing.T, f *ext4) { f.or(sbIncompat, 0x200); f.put(f.super+sbLogGroups, []byte{0xff}) }, false},
		{"room to grow for ever", func(_ *testing.T, f *ext4) { f.put16(f.super+sbGDT, 0xffff) }, false},
		{"extents in a circle", func(_ *testing.T, f *ext4) { extentLoop(f) }, false},
		{"directories in a circle", directoryLoop, false},
		{"a directory entry of no length", entryOfZero, false},
		{"a journal of 4 G blocks", func(_ *testing.T, f *ext4) { journalOf(f, craftedBlock, allOnes, 1) }, false},
		{"a journal of blocks of 1 GiB", func(_ *testing.T, f *ext4) { journalOf(f, 1<<30, 1024, 1) }, false},
		{"a journal that begins behind its end", func(_ *testing.T, f *ext4) { journalOf(f, craftedBlock, 1024, allOnes) }, false},
		{"a journal that is the root directory", super(sbJournal, 2), false},
		{"orphans in a circle", func(_ *testing.T, f *ext4) { orphanLoop(f) }, false},
		{"a root directory that is a link", rootIs(unix.S_IFLNK|0o777, 0x6374652f, 0x6168732f, 0x00776f64), false},
		{"a root directory that is a disk", rootIs(unix.S_IFBLK|0o666, 254<<8), false},
		{"a root directory that is memory", rootIs(unix.S_IFCHR|0o666, 1<<8|1), false},
		{"groups on top of each other", overlap, false},
		{"resize inode of garbage", func(_ *testing.T, f *ext4) { fillInode(f, 7) }, false},
		{"journal inode of garbage", func(_ *testing.T, f *ext4) { fillInode(f, 8) }, false},
		{"quota in the root directory", func(_ *testing.T, f *ext4) { f.or(sbROCompat, 0x100); f.put32(f.super+sbUserQuota, 2) }, false},
		{"a journal on another disk", func(_ *testing.T, f *ext4) { f.or(sbIncompat, 8) }, false},

		{"clean: a root directory that is a link", rootIs(unix.S_IFLNK|0o777, 0x6374652f, 0x6168732f, 0x00776f64), true},
		{"clean: a directory entry of no length", entryOfZero, true},
		{"clean: groups on top of each other", overlap, true},
		{"clean: indirect blocks in a circle", loopFile, true},
	}
}

// indirectLoop makes a file of four terabytes out of one block, which is all of
// its indirect blocks: who walks it without looking walks 2^30 times.
func indirectLoop(f *ext4) {
	n := f.named("/one")
	at, block := f.inode(n), f.block(n)
	f.put32(at+inFlags, 0) // no extents
	f.put(at+inBlock, make([]byte, 60))
	for i := int64(12); i < 15; i++ {
		f.put32(at+inBlock+4*i, uint32(block))
	}
	f.put32(at+inSizeHigh, 1<<10-1)
	raw := make([]byte, 0, craftedBlock)
	for range craftedBlock / 4 {
		raw = binary.LittleEndian.AppendUint32(raw, uint32(block))
	}
	f.put(block*craftedBlock, raw)
}

// extentLoop makes an index of extents that leads to itself.
func extentLoop(f *ext4) {
	n := f.named("/one")
	at, block := f.inode(n)+inBlock, f.block(n)
	node := func(depth uint16, room int) []byte {
		raw := binary.LittleEndian.AppendUint16(nil, 0xf30a)
		for _, v := range []uint16{1, uint16(room), depth, 0, 0} { // one entry; a generation
			raw = binary.LittleEndian.AppendUint16(raw, v)
		}
		raw = binary.LittleEndian.AppendUint32(raw, 0) // from block 0 on
		raw = binary.LittleEndian.AppendUint32(raw, uint32(block))
		return binary.LittleEndian.AppendUint32(raw, 0)
	}
	f.put(at, node(2, 4))
	f.put(block*craftedBlock, node(1, (craftedBlock-12)/12))
}

// directoryLoop makes a directory its own grandparent, and takes away the name
// by which the root directory has it.
func directoryLoop(t *testing.T, f *ext4) {
	a := f.named("/a")
	debugfs(t, f.file.Name(), fmt.Sprintf("link <%d> a/b/c/back", a), "unlink a")
	// And another one that is reached by two ways.
	debugfs(t, f.file.Name(), "mkdir d", "mkdir d/e", "mkdir g", "link d/e g/e", "link d g/e/d")
}

// journalOf makes a journal that wants to be replayed and is not what it says.
func journalOf(f *ext4, block, blocks, start uint32) {
	at := f.block(8) * craftedBlock
	f.big32(at+12, block)
	f.big32(at+16, blocks)
	f.big32(at+20, 1)
	f.big32(at+28, start)
	f.or(sbIncompat, 4) // needs recovery
}

// orphanLoop makes two files wait for their removal, each behind the other.
func orphanLoop(f *ext4) {
	one, two := f.named("/one"), f.named("/two")
	f.put32(f.super+sbOrphan, uint32(one))
	for _, n := range [][2]int64{{one, two}, {two, one}} {
		f.put16(f.inode(n[0])+inLinks, 0)
		f.put32(f.inode(n[0])+inDeleted, uint32(n[1])) // the next of the list
	}
}

func fillInode(f *ext4, n int64) {
	at := f.inode(n)
	f.put32(at+inSize, allOnes)
	f.put32(at+inSectors, allOnes)
	f.put(at+inBlock, bytes.Repeat([]byte{0xfe, 0x3f, 0, 0}, 15)) // the last block but one
	f.put32(at+inSizeHigh, allOnes)
}

// watchMounts returns what fails the test if anybody on the host, in whatever
// namespace, mounted something of a VM since: ext4 tells the kernel's log of each
// try, also of one that failed.
func watchMounts(t *testing.T) func(t *testing.T) {
	t.Helper()
	said := func(t *testing.T) int {
		t.Helper()
		log := host.Root(t, "journalctl", "--dmesg", "--quiet", "--no-pager", "--output=cat")
		n := 0
		for line := range strings.Lines(log) {
			for _, fs := range []string{"EXT4-fs", "EXT3-fs", "EXT2-fs", "JBD2", "XFS", "BTRFS"} {
				if strings.HasPrefix(line, fs) && (strings.Contains(line, "dm-") || strings.Contains(line, "loop")) {
					n++
				}
			}
		}
		return n
	}
	// That such a line is written and found is shown once, by a mount of our own.
	before := said(t)
	file, dir := mkfs(t), t.TempDir()
	host.Root(t, "mount", "-o", "loop,ro", file, dir)
	host.Root(t, "umount", dir)
	base := 0
	host.Eventually(t, 20*time.Second, func() error {
		if base = said(t); base <= before {
			return errors.New("the kernel's log tells of no mount")
		}
		return nil
	})
	return func(t *testing.T) {
		t.Helper()
		if now := said(t); now != base {
			t.Errorf("filesystems on loop devices or device-mapper were mounted: %d lines in the kernel's log, were %d", now, base)
		}
		for line := range strings.Lines(host.Read(t, "/proc/1/mountinfo")) {
			if strings.Contains(line, "/dev/loop") || strings.Contains(line, "/dev/dm-") || strings.Contains(line, "/dev/mapper/fc-") {
				t.Errorf("it is mounted: %s", line)
			}
		}
	}
}

// watchServices returns what fails the test if bangerd or the helper ended, or
// grew.
func watchServices(t *testing.T) func(t *testing.T) {
	t.Helper()
	daemon := usage(t, "bangerd.service")
	host.Banger(t, "doctor") // so that the helper is there
	part := usage(t, "banger-helper.service")
	// It leaves when nobody asks for five minutes, and the next one is as good.
	restarts := host.Root(t, "systemctl", "show", "--property=NRestarts", "--value", "banger-helper.service")
	return func(t *testing.T) {
		t.Helper()
		daemon.wantBack(t, "bangerd.service")
		if now := host.Root(t, "systemctl", "show", "--property=NRestarts", "--value", "banger-helper.service"); now != restarts {
			t.Errorf("the helper was started anew after a failure: %s times, was %s", now, restarts)
		}
		host.Banger(t, "doctor")
		part.pid = host.MainPID(t, "banger-helper.service")
		part.wantBack(t, "banger-helper.service")
	}
}
