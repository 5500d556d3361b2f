package agent

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// The image's own network programs must leave the card as it is. What tells
// them so lies in /run, so it is gone with this run of the guest and nothing
// is edited in the image; only /etc/resolv.conf is, where it is a plain file.

// runFiles are what the image's network programs read:
//   - systemd-networkd manages the card with the address it has, instead of
//     what a .network file for all cards says; the file comes before
//     netplan's and cloud-init's. It does not leave the card alone, since
//     network-online.target would wait for any card it manages then.
//   - systemd-resolved asks the same resolvers as everybody.
//   - NetworkManager does not touch the card.
//   - ifupdown, and those of busybox and Alpine, find the card up already.
//   - resolvconf has the resolvers as this card's record.
func runFiles(n guest.Network, card string) []guest.File {
	text := func(p string, lines ...string) guest.File {
		return guest.File{Path: p, Mode: 0o644, Content: []byte(strings.Join(lines, "\n") + "\n")}
	}
	network := []string{
		"[Match]", "MACAddress=" + n.MAC, "",
		"[Network]", "Address=" + n.Address,
	}
	if n.Gateway != "" {
		network = append(network, "Gateway="+n.Gateway)
	}
	network = append(network, "LinkLocalAddressing=no", "IPv6AcceptRA=no", "KeepConfiguration=yes")
	files := []guest.File{
		text("/run/systemd/network/00-banger.network", network...),
		text("/run/NetworkManager/conf.d/00-banger.conf", "[keyfile]", "unmanaged-devices=mac:"+n.MAC),
		text("/run/network/ifstate", card+"="+card),
		text("/run/network/ifstate."+card, card),
		text("/run/ifstate", card+"="+card),
	}
	if len(n.DNS) > 0 {
		resolve := []string{"[Resolve]", "DNS=" + strings.Join(n.DNS, " ")}
		if len(n.Search) > 0 {
			resolve = append(resolve, "Domains="+strings.Join(n.Search, " "))
		}
		files = append(files,
			text("/run/systemd/resolved.conf.d/00-banger.conf", resolve...),
			guest.File{Path: "/run/resolvconf/interface/" + card + ".banger", Mode: 0o644, Content: resolvConf(n)})
	}
	return files
}

func resolvConf(n guest.Network) []byte {
	var b strings.Builder
	for _, addr := range n.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", addr)
	}
	if len(n.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(n.Search, " "))
	}
	return []byte(b.String())
}

// writeNetConf writes all of it into root, which is complete: /run is a tmpfs
// if an init is going to start.
func writeNetConf(root tree, n guest.Network, card string, hasInit bool) error {
	if hasInit {
		for _, f := range runFiles(n, card) {
			if err := root.write(f); err != nil {
				return err
			}
		}
	}
	if len(n.DNS) == 0 {
		return nil
	}
	at := "/etc/resolv.conf"
	if hasInit {
		at = root.followTo(at, "/run")
	}
	return root.write(guest.File{Path: at, Mode: 0o644, Content: resolvConf(n)})
}

// followTo returns where the link at name leads, if that is on the filesystem
// mounted at below: whoever makes the link's target at run time finds it there
// and replaces it. Everything else is for replacing at name itself.
func (t tree) followTo(name, below string) string {
	at := name
	for range 8 { // more links than anybody makes of this file
		target, err := t.readlink(at)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // no link, or nothing yet
			break
		}
		if err != nil {
			return name
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(at), target)
		}
		at = path.Clean(target)
	}
	if at == name || !t.sameFilesystem(path.Dir(at), below) {
		return name
	}
	return at
}

func (t tree) readlink(name string) (string, error) {
	fd, err := t.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if errors.Is(err, unix.ENOENT) { // what an empty path of no link gives
		err = unix.EINVAL
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// sameFilesystem tells whether dir, or the deepest directory on the way there
// that exists, is on the filesystem mounted at mountPoint.
func (t tree) sameFilesystem(dir, mountPoint string) bool {
	var a, b, root unix.Stat_t
	return t.statDir(dir, &a) == nil && t.statDir(mountPoint, &b) == nil && t.statDir("/", &root) == nil &&
		a.Dev == b.Dev && b.Dev != root.Dev
}

func (t tree) statDir(dir string, st *unix.Stat_t) error {
	fd, err := t.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) && dir != "/" {
		return t.statDir(path.Dir(dir), st)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fstat(fd, st)
}
