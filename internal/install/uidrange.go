package install

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

const (
	// rangeName is the owner of the VMs' ids in /etc/subuid and /etc/subgid.
	rangeName  = "banger"
	rangeCount = 65536
	// rangeFloor is above what distributions give to people and, usually, to
	// the first user's own containers.
	rangeFloor = 200000
	// rangeLimit is where some programs take ids for negative numbers.
	rangeLimit = math.MaxInt32
)

// idRange is a run of ids that belong to somebody.
type idRange struct {
	start, count int64
	who          string
}

func (r idRange) end() int64 { return r.start + r.count }

func (r idRange) overlaps(o idRange) bool { return r.start < o.end() && o.start < r.end() }

// systemRanges are ids that systemd gives away without writing that down
// anywhere. What it gives to services and to homes is far below the floor.
var systemRanges = []idRange{
	{start: 0x80000, count: 0x6fffffff - 0x80000 + 1, who: "systemd's containers"},
	{start: 0x7ffe0000, count: 0x10000, who: "systemd's foreign files"},
}

// idTables are the texts that say which ids are taken: of passwd and group first
// the file and then whatever else the host knows.
type idTables struct{ subuid, subgid, passwd, group string }

// idChoice is the VMs' range and where it still has to be written.
type idChoice struct {
	start            int
	addUIDs, addGIDs bool
}

// lines maps the files to change to the line they get.
func (c idChoice) lines() map[string]string {
	line := fmt.Sprintf("%s:%d:%d", rangeName, c.start, rangeCount)
	lines := map[string]string{}
	if c.addUIDs {
		lines[subUIDFile] = line
	}
	if c.addGIDs {
		lines[subGIDFile] = line
	}
	return lines
}

// choose returns the range that is reserved already, or the lowest one that
// nobody has. It refuses a reservation that somebody else could use too: a VM's
// uid must mean that VM and nothing else.
func (t idTables) choose() (idChoice, error) {
	users := accounts(t.passwd, "user")
	if slices.ContainsFunc(users, func(r idRange) bool { return r.who == "user "+rangeName }) {
		return idChoice{}, fmt.Errorf("there is a user named %q, and lines of that name in %s would let it act as any VM", rangeName, subUIDFile)
	}
	ownUIDs, taken, err := subIDs(t.subuid, subUIDFile)
	if err != nil {
		return idChoice{}, err
	}
	ownGIDs, takenGIDs, err := subIDs(t.subgid, subGIDFile)
	if err != nil {
		return idChoice{}, err
	}
	taken = slices.Concat(taken, takenGIDs, users, accounts(t.group, "group"))
	choice := idChoice{addUIDs: ownUIDs == nil, addGIDs: ownGIDs == nil}
	switch {
	case ownUIDs == nil && ownGIDs == nil:
		start, err := lowestFree(slices.Concat(taken, systemRanges))
		choice.start = int(start)
		return choice, err
	case ownUIDs != nil && ownGIDs != nil && *ownUIDs != *ownGIDs:
		return idChoice{}, fmt.Errorf("%s gives %s the ids from %d and %s those from %d", subUIDFile, rangeName, ownUIDs.start, subGIDFile, ownGIDs.start)
	}
	// systemd's ranges do not count here: it takes ids from them that nobody has,
	// and what was chosen once cannot be changed under VMs.
	own := ownUIDs
	if own == nil {
		own = ownGIDs
	}
	for _, r := range taken {
		if r.overlaps(*own) {
			return idChoice{}, fmt.Errorf("the ids from %d reserved for %s overlap those of %s", own.start, rangeName, r.who)
		}
	}
	choice.start = int(own.start)
	return choice, nil
}

// lowestFree takes the first gap at or above the floor. Behind another range it
// starts at a multiple of its size, so that it reads as what it is.
func lowestFree(taken []idRange) (int64, error) {
	slices.SortFunc(taken, func(a, b idRange) int { return int(a.start - b.start) })
	free := idRange{start: rangeFloor, count: rangeCount}
	for _, r := range taken {
		if r.overlaps(free) {
			free.start = (r.end() + rangeCount - 1) / rangeCount * rangeCount
		}
	}
	if free.end() > rangeLimit {
		return 0, fmt.Errorf("there is no run of %d free ids below %d", rangeCount, rangeLimit)
	}
	return free.start, nil
}

// subIDs reads the text of /etc/subuid or /etc/subgid: our own range, nil if
// there is none, and everybody else's. A broken line gives nothing to anybody
// (shadow skips it too), but one of ours must make sense.
func subIDs(text, file string) (own *idRange, others []idRange, err error) {
	for i, line := range strings.Split(text, "\n") {
		who, numbers, _ := strings.Cut(strings.TrimSpace(line), ":")
		first, count, _ := strings.Cut(numbers, ":")
		r := idRange{who: who}
		var bad1, bad2 error
		r.start, bad1 = strconv.ParseInt(first, 10, 64)
		r.count, bad2 = strconv.ParseInt(count, 10, 64)
		valid := bad1 == nil && bad2 == nil && r.start >= 0 && r.count > 0 && r.start <= math.MaxUint32 && r.count <= math.MaxUint32
		switch {
		case who != rangeName && valid && !strings.HasPrefix(who, "#"):
			others = append(others, r)
		case who != rangeName:
		case own != nil:
			return nil, nil, fmt.Errorf("%s line %d: a second range for %s", file, i+1, rangeName)
		case !valid || r.count != rangeCount || r.start < rangeCount || r.end() > rangeLimit:
			return nil, nil, fmt.Errorf("%s line %d: %q is not a range of %d ids from %d on", file, i+1, line, rangeCount, rangeCount)
		default:
			own = &r
		}
	}
	return own, others, nil
}

// accounts reads the ids in the text of /etc/passwd or /etc/group.
func accounts(text, kind string) []idRange {
	var ids []idRange
	for line := range strings.Lines(text) {
		fields := strings.Split(line, ":")
		if len(fields) < 3 {
			continue
		}
		if id, err := strconv.ParseInt(fields[2], 10, 64); err == nil && id >= 0 && id <= math.MaxUint32 {
			ids = append(ids, idRange{start: id, count: 1, who: kind + " " + fields[0]})
		}
	}
	return ids
}
