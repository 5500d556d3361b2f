package agent

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"banger/internal/guest"
)

// Bounds of the work and of the answer.
const (
	maxSocketLines = 100_000
	maxPorts       = guest.MaxPorts
	maxOpenFiles   = 200_000 // looked at to find the names of processes
)

// boundSocket is a port with the number by which its owner is found.
type boundSocket struct {
	guest.Port
	inode string
}

// socketTables are of the agent's own network namespace, which is the guest's:
// its containers have others.
var socketTables = []struct{ file, protocol, state string }{
	{"tcp", "tcp", "0A"}, // TCP_LISTEN
	{"tcp6", "tcp", "0A"},
	{"udp", "udp", "07"}, // bound, connected to nobody
	{"udp6", "udp", "07"},
}

func (s *server) getPorts(struct{}) ([]guest.Port, error) { return listPorts("/proc") }

func listPorts(proc string) ([]guest.Port, error) {
	var sockets []boundSocket
	for _, t := range socketTables {
		f, err := os.Open(filepath.Join(proc, "self/net", t.file))
		if errors.Is(err, os.ErrNotExist) { // no IPv6
			continue
		}
		if err != nil {
			return nil, err
		}
		found, err := parseSockets(f, t.protocol, t.state)
		_ = f.Close() // it was only read
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, found...)
	}
	return namePorts(sockets, processNames(proc, sockets)), nil
}

// namePorts makes one port of the sockets that share it, in order.
func namePorts(sockets []boundSocket, names map[string]string) []guest.Port {
	ports := make([]guest.Port, 0, len(sockets))
	for _, s := range sockets {
		s.Process = names[s.inode]
		ports = append(ports, s.Port)
	}
	slices.SortFunc(ports, func(a, b guest.Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.Address, b.Address), cmp.Compare(b.Process, a.Process)) // those with a name first
	})
	ports = slices.CompactFunc(ports, func(a, b guest.Port) bool {
		return a.Protocol == b.Protocol && a.Port == b.Port && a.Address == b.Address
	})
	return ports[:min(len(ports), maxPorts)]
}

// parseSockets reads a table like /proc/net/tcp and returns the sockets in that
// state that no peer is known of.
func parseSockets(r io.Reader, protocol, state string) ([]boundSocket, error) {
	var found []boundSocket
	scan := bufio.NewScanner(r)
	scan.Scan() // the heading
	for range maxSocketLines {
		if !scan.Scan() {
			break
		}
		f := strings.Fields(scan.Text())
		if len(f) < 10 || f[3] != state || !strings.HasSuffix(f[2], ":0000") {
			continue
		}
		local, ok := parseEndpoint(f[1])
		if !ok || local.Port() == 0 {
			continue
		}
		found = append(found, boundSocket{inode: f[9], Port: guest.Port{
			Protocol: protocol, Address: local.Addr().String(), Port: int(local.Port()),
		}})
	}
	return found, scan.Err()
}

// parseEndpoint reads an address as the kernel prints it: words of 32 bits in
// the machine's own order.
func parseEndpoint(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	words, err := hex.DecodeString(host)
	if err != nil || (len(words) != 4 && len(words) != 16) {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(words); i += 4 {
		binary.BigEndian.PutUint32(words[i:], binary.NativeEndian.Uint32(words[i:]))
	}
	n, err := strconv.ParseUint(port, 16, 16)
	addr, ok := netip.AddrFromSlice(words)
	return netip.AddrPortFrom(addr, uint16(n)), ok && err == nil
}

// processNames finds who has the sockets, by inode. What it cannot see, or what
// would be too much to look at, has no name.
func processNames(proc string, sockets []boundSocket) map[string]string {
	wanted := map[string]bool{}
	for _, s := range sockets {
		wanted["socket:["+s.inode+"]"] = true
	}
	names := map[string]string{}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return names
	}
	looked := 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		if len(wanted) == 0 || looked > maxOpenFiles {
			break
		}
		dir := filepath.Join(proc, e.Name())
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue // it has ended
		}
		looked += len(fds)
		for _, fd := range fds {
			target, err := os.Readlink(dir + "/fd/" + fd.Name())
			if err != nil || !wanted[target] {
				continue
			}
			comm, err := os.ReadFile(dir + "/comm")
			if err != nil {
				break
			}
			delete(wanted, target) // its first owner counts
			inode := strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")
			names[inode] = strings.TrimSpace(string(comm))
		}
	}
	return names
}
