package kernel

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

const testRelease = "6.1.0-9-test"

// fakeELF is a kernel as far as this package looks: one segment at 16 MiB with
// a banner, and enough x86 calls for a BCJ filter to have something to do.
func fakeELF() []byte {
	le := binary.LittleEndian
	b := make([]byte, 4096, 256<<10)
	for i := range uint32(30_000) {
		b = append(b, 0xe8)
		b = le.AppendUint32(b, i%97*64-i*5)
	}
	b = append(b, "Linux version "+testRelease+" (me@here) #1 SMP\x00"...)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], elfTypeExec)
	le.PutUint16(b[18:], elfMachineX86)
	le.PutUint64(b[24:], 16<<20)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[54:], elfProgHeader)
	le.PutUint16(b[56:], 1)
	ph := b[64:]
	le.PutUint32(ph, elfLoad)
	le.PutUint64(ph[24:], 16<<20)
	le.PutUint64(ph[32:], uint64(len(b)))
	le.PutUint64(ph[40:], 24<<20)
	return b
}

// bzImage wraps a payload as the kernel's build does.
func bzImage(payload []byte) []byte {
	const sectors, gap = 3, 100
	b := make([]byte, (sectors+1)*sectorSize+gap, (sectors+1)*sectorSize+gap+len(payload)+64)
	le := binary.LittleEndian
	b[offSetupSects] = sectors
	le.PutUint16(b[offBootFlag:], 0xaa55)
	copy(b[offMagic:], "HdrS")
	le.PutUint16(b[offVersion:], 0x020f)
	le.PutUint16(b[offVersionText:], 0x300)
	copy(b[0x500:], testRelease+" (me@here) #1 SMP\x00")
	le.PutUint32(b[offPayload:], gap)
	le.PutUint32(b[offPayloadLen:], uint32(len(payload)))
	return append(append(b, payload...), make([]byte, 64)...)
}

func withSize(payload []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(payload), uint32(size))
}

// compressors are the ways a kernel's payload is made, size trailer included.
var compressors = map[string]func(testing.TB, []byte) []byte{
	"gzip": func(t testing.TB, b []byte) []byte {
		return through(t, b, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
	},
	"xz": func(t testing.TB, b []byte) []byte {
		return withSize(through(t, b, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }), len(b))
	},
	"zstd": func(t testing.TB, b []byte) []byte {
		return withSize(through(t, b, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }), len(b))
	},
	"lz4": func(t testing.TB, b []byte) []byte {
		return withSize(through(t, b, func(w io.Writer) (io.WriteCloser, error) {
			z := lz4.NewWriter(w)
			return z, z.Apply(lz4.LegacyOption(true))
		}), len(b))
	},
	"none": func(_ testing.TB, b []byte) []byte { return withSize(b, len(b)) },
}

func through(t testing.TB, b []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := open(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// fakeModule is a module as far as this package looks.
func fakeModule(name, release string) []byte {
	b := make([]byte, elfHeaderSize)
	copy(b, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(b[16:], elfTypeReloc)
	binary.LittleEndian.PutUint16(b[18:], elfMachineX86)
	return fmt.Appendf(b, "\x00name=%s\x00vermagic=%s SMP preempt mod_unload \x00", name, release)
}

type member struct {
	name string
	kind byte
	data []byte
}

func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: m.kind, Mode: 0o644, Size: int64(len(m.data))}
		if m.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if m.kind == tar.TypeSymlink {
			h.Linkname = "/etc/passwd"
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// debianDep is what a distribution's modules.dep says of the modules wanted.
const debianDep = `kernel/fs/fuse/fuse.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_mmio.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/net/vmw_vsock/vsock.ko:
kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko: kernel/net/vmw_vsock/vsock.ko
kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko: kernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko kernel/net/vmw_vsock/vsock.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
`

const debianBuiltin = "kernel/fs/ext4/ext4.ko\nkernel/fs/jbd2/jbd2.ko\n"

var debianOrder = []string{
	"virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net",
	"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport", "virtio_rng",
}
