package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"math"
	"slices"

	"banger/api"
)

// What an ELF file must look like to be a kernel for these machines.
const (
	elfHeaderSize = 64
	elfProgHeader = 56
	elfClass64    = 2
	elfLittle     = 1
	elfTypeReloc  = 1
	elfTypeExec   = 2
	elfMachineX86 = 62
	elfLoad       = 1
	elfInterp     = 3
)

const (
	// maxHead is how much of an ELF file is kept to read its program headers.
	maxHead = 64 << 10
	// lowestLoad is where x86 memory that a kernel may be put in begins.
	lowestLoad = 1 << 20
	// highestLoad is no limit of Firecracker: a kernel that wants to lie above
	// it is damaged or hostile.
	highestLoad = 1 << 30
	// maxELF bounds an unpacked kernel; distributions' are 30 to 80 MiB.
	maxELF = 512 << 20
)

var errTooLarge = errors.New("it unpacks to more than 512 MiB")

var banner = []byte("Linux version ")

// probe is a writer that learns what there is to learn of an ELF kernel while
// it flows by: nothing is read twice and nothing but its head is kept.
type probe struct {
	size    int64
	head    []byte
	hash    hash.Hash
	release string
	tail    []byte
}

func newProbe() *probe { return &probe{hash: sha256.New()} }

// Write fails as soon as it is clear that the data is no kernel, so that a
// decompression bomb ends at its first bytes or at maxELF.
func (p *probe) Write(b []byte) (int, error) {
	if p.size+int64(len(b)) > maxELF {
		return 0, errTooLarge
	}
	p.size += int64(len(b))
	if n := min(maxHead-len(p.head), len(b)); n > 0 {
		p.head = append(p.head, b[:n]...)
	}
	if len(p.head) >= elfHeaderSize {
		if err := checkIdent(p.head, elfTypeExec); err != nil {
			return 0, err
		}
	}
	p.hash.Write(b)
	p.scan(b)
	return len(b), nil
}

// scan looks for the kernel's banner, also where two writes meet.
func (p *probe) scan(b []byte) {
	if p.release != "" {
		return
	}
	const keep = 128 // the banner's words and the longest release
	seam := slices.Concat(p.tail, b[:min(len(b), keep)])
	if p.release = releaseIn(seam); p.release == "" {
		p.release = releaseIn(b)
	}
	if len(b) >= keep {
		p.tail = append(p.tail[:0], b[len(b)-keep:]...)
	} else {
		p.tail = seam[max(0, len(seam)-keep):]
	}
}

func releaseIn(b []byte) string {
	for {
		i := bytes.Index(b, banner)
		if i < 0 {
			return ""
		}
		b = b[i+len(banner):]
		end := bytes.IndexByte(b, ' ')
		if end > 0 && validRelease(string(b[:end])) {
			return string(b[:end])
		}
	}
}

// validRelease accepts what uname -r may say: it becomes part of messages.
func validRelease(s string) bool {
	if s == "" || len(s) > 64 || s[0] < '0' || s[0] > '9' {
		return false
	}
	for _, c := range []byte(s) {
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			c == '.' || c == '_' || c == '+' || c == '~' || c == '-'
		if !ok {
			return false
		}
	}
	return true
}

func (p *probe) sum() string { return hex.EncodeToString(p.hash.Sum(nil)) }

// checkIdent reads the first elfHeaderSize bytes of an ELF file.
func checkIdent(head []byte, fileType uint16) error {
	switch le := binary.LittleEndian; {
	case !isELF(head):
		return errors.New("it is no ELF file")
	case head[4] != elfClass64 || head[5] != elfLittle || le.Uint16(head[18:]) != elfMachineX86:
		return errors.New("it is not for x86-64")
	case le.Uint16(head[16:]) != fileType && fileType == elfTypeExec:
		return errors.New("it is an ELF file, but no kernel")
	case le.Uint16(head[16:]) != fileType:
		return errors.New("it is an ELF file, but no kernel module")
	}
	return nil
}

func isELF(b []byte) bool { return bytes.HasPrefix(b, []byte("\x7fELF")) }

// end returns the physical address behind the last byte the kernel occupies
// when loaded, and refuses what Firecracker could not load.
func (p *probe) end() (int64, error) {
	if len(p.head) < elfHeaderSize {
		return 0, errors.New("it ends within its header")
	}
	if err := checkIdent(p.head, elfTypeExec); err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	entry, off := le.Uint64(p.head[24:]), le.Uint64(p.head[32:])
	size, count := le.Uint16(p.head[54:]), uint64(le.Uint16(p.head[56:]))
	if size != elfProgHeader || count == 0 || off < elfHeaderSize ||
		off > maxHead || off+count*elfProgHeader > uint64(len(p.head)) {
		return 0, errors.New("its program headers are damaged")
	}
	var last uint64
	entryLoaded := false
	for i := range count {
		h := p.head[off+i*elfProgHeader:]
		switch le.Uint32(h) {
		case elfInterp:
			return 0, errors.New("it is a program, not a kernel")
		case elfLoad:
			from, to, err := p.segment(h)
			if err != nil {
				return 0, err
			}
			last = max(last, to)
			entryLoaded = entryLoaded || entry >= from && entry < to
		}
	}
	if !entryLoaded {
		return 0, errors.New("its entry point lies outside of what it loads")
	}
	return int64(last), nil
}

// segment checks one PT_LOAD header and returns the memory it fills.
func (p *probe) segment(h []byte) (from, to uint64, err error) {
	le := binary.LittleEndian
	off, phys := le.Uint64(h[8:]), le.Uint64(h[24:])
	inFile, inMemory := le.Uint64(h[32:]), le.Uint64(h[40:])
	switch {
	case off > math.MaxInt64 || inFile > math.MaxInt64 || off+inFile > uint64(p.size):
		return 0, 0, errors.New("it is truncated")
	case inFile > inMemory || phys < lowestLoad || phys > highestLoad || inMemory > highestLoad-phys:
		return 0, 0, errors.New("it wants to be loaded at impossible addresses")
	}
	return phys, phys + inMemory, nil
}

func badKernel(cause error) *api.Problem {
	return api.BadRequest("the given kernel cannot be used: %v", cause).
		WithHint("give a vmlinux or a vmlinuz for x86-64, e.g. /boot/vmlinuz-VERSION of a distribution")
}
