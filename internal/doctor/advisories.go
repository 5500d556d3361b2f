package doctor

import (
	"fmt"
	"strings"
)

// advisory is a weakness of Firecracker that is public.
type advisory struct {
	id, what string
	affected []span
}

// span is the releases from first up to, but without, mended.
type span struct{ first, mended release }

type release [3]int

func (r release) before(o release) bool {
	for i := range r {
		if r[i] != o[i] {
			return r[i] < o[i]
		}
	}
	return false
}

// advisoryList follows the security advisories of firecracker-microvm/firecracker
// on GitHub and the records of these numbers in the CVE list, as of June 2026.
var advisoryList = []advisory{
	{"CVE-2019-18960", "a guest reads and writes beyond its memory through vsock",
		[]span{{release{0, 18, 0}, release{0, 18, 1}}, {release{0, 19, 0}, release{0, 19, 1}}}},
	{"CVE-2020-16843", "a guest's network stops under much traffic",
		[]span{{release{0, 20, 0}, release{0, 20, 1}}, {release{0, 21, 0}, release{0, 21, 2}}}},
	{"CVE-2020-27174", "the serial console's buffer grows without limit",
		[]span{{release{}, release{0, 21, 3}}, {release{0, 22, 0}, release{0, 22, 1}}}},
	{"CVE-2026-1386", "the jailer follows a link in a jail directory that somebody else made; banger makes it itself, as root, and refuses one that is there",
		[]span{{release{}, release{1, 13, 2}}, {release{1, 14, 0}, release{1, 14, 1}}}},
	{"CVE-2026-5747", "a guest's root writes beyond its memory through virtio-pci, which banger does not enable",
		[]span{{release{1, 13, 0}, release{1, 14, 4}}, {release{1, 15, 0}, release{1, 15, 1}}}},
}

// recommended is the oldest release without a known weakness.
const recommended = "1.15.1"

// advisories warns also of what does not touch banger: another use of the same
// program may be touched.
func advisories(firecracker string) Finding {
	var v release
	if n, err := fmt.Sscanf(firecracker, "%d.%d.%d", &v[0], &v[1], &v[2]); err != nil || n != 3 {
		return Warn("", "the version %q says nothing", firecracker)
	}
	var found []string
	for _, a := range advisoryList {
		for _, s := range a.affected {
			if !v.before(s.first) && v.before(s.mended) {
				found = append(found, a.id+" ("+a.what+")")
			}
		}
	}
	if len(found) > 0 {
		return Warn("install Firecracker and jailer "+recommended+" or newer", "Firecracker %s has %s", firecracker, strings.Join(found, "; "))
	}
	return Pass("none is known for Firecracker %s", firecracker)
}
