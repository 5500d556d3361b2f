package kernel

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

func names(mods []module) []string {
	var out []string
	for _, m := range mods {
		out = append(out, m.name)
	}
	return out
}

func TestLoadOrder(t *testing.T) {
	for name, tc := range map[string]struct {
		dep, builtin string
		want         []string
	}{
		"debian": {debianDep, debianBuiltin, debianOrder},
		"all built in": {"", "k/virtio_mmio.ko\nk/virtio_blk.ko\nk/ext4.ko\n" +
			"k/vmw_vsock_virtio_transport.ko\nk/virtio-rng.ko\n", nil},
		"ext4 as module": {
			"f/ext4.ko.zst: f/jbd2.ko.zst f/mbcache.ko.zst\nf/jbd2.ko.zst:\nf/mbcache.ko.zst:\n" +
				"c/crc32c_generic.ko.zst:\nn/vmw_vsock_virtio_transport.ko.zst:\n",
			"k/virtio_mmio.ko\nk/virtio_blk.ko\n",
			[]string{"crc32c_generic", "jbd2", "mbcache", "ext4", "vmw_vsock_virtio_transport"},
		},
		"crc32c not needed": {
			"c/crc32c_generic.ko:\nn/vmw-vsock-virtio-transport.ko.xz:\n",
			"k/virtio_mmio.ko\nk/virtio_blk.ko\nf/ext4.ko\n",
			[]string{"vmw_vsock_virtio_transport"},
		},
		"built in wins": {debianDep, debianBuiltin + "a/virtio_net.ko\n",
			slices.DeleteFunc(slices.Clone(debianOrder), func(s string) bool { return slices.Contains([]string{"virtio_net", "net_failover", "failover"}, s) })},
	} {
		t.Run(name, func(t *testing.T) {
			mods, err := loadOrder([]byte(tc.dep), []byte(tc.builtin))
			if err != nil {
				t.Fatal(err)
			}
			if got := names(mods); !slices.Equal(got, tc.want) {
				t.Errorf("got  %v\nwant %v", got, tc.want)
			}
		})
	}
}

func TestLoadOrderRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ dep, builtin, want string }{
		"no root disk": {"", "k/virtio_mmio.ko\n", "cannot read its root disk: virtio_blk"},
		"no vsock": {strings.ReplaceAll(debianDep, "vmw_vsock_virtio_transport.ko", "other.ko"), debianBuiltin,
			"cannot be reached by banger: vmw_vsock_virtio_transport"},
		"no ext4":          {debianDep, "", "cannot mount its root filesystem: ext4"},
		"nothing":          {"", "", "cannot see its devices"},
		"no line":          {"what is this\n", "", "is no line of it"},
		"absolute":         {"/lib/modules/virtio.ko:\n", "", "no path of a module"},
		"climbing":         {"../virtio.ko:\n", "", "no path of a module"},
		"no module":        {"kernel/README:\n", "", "no path of a module"},
		"odd name":         {"k/a b.ko:\n", "", "no path of a module"},
		"missing from dep": {"k/virtio_mmio.ko: k/nowhere.ko\n", "", "which it does not list"},
		"cycle":            {"k/virtio_mmio.ko: k/b.ko\nk/b.ko: k/virtio_mmio.ko\n", "", "depends on itself"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadOrder([]byte(tc.dep), []byte(tc.builtin))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestUnpackModule(t *testing.T) {
	plain := fakeModule("virtio", testRelease)
	forms := map[string][]byte{
		"plain": plain,
		"gz":    through(t, plain, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		"xz":    through(t, plain, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }),
		"zst":   through(t, plain, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
	}
	for name, raw := range forms {
		got, err := unpackModule(bytes.NewReader(raw), "virtio", testRelease)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := unpackModule(bytes.NewReader(raw[:len(raw)/2]), "virtio", testRelease); err == nil {
			t.Errorf("%s: half a module was accepted", name)
		}
	}
	for want, raw := range map[string][]byte{
		"was made for kernel \"5.0\"": fakeModule("virtio", "5.0"),
		"no kernel module":            fakeELF(),
		"no ELF file":                 bytes.Repeat([]byte("text"), 100),
	} {
		if _, err := unpackModule(bytes.NewReader(raw), "virtio", testRelease); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func FuzzLoadOrder(f *testing.F) {
	f.Add([]byte(debianDep), []byte(debianBuiltin))
	f.Fuzz(func(t *testing.T, dep, builtin []byte) {
		mods, err := loadOrder(dep, builtin)
		if err != nil {
			return
		}
		for _, m := range mods {
			if !validModuleName(m.name) {
				t.Errorf("name %q", m.name)
			}
		}
	})
}
