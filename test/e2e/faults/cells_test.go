//go:build e2e && faults

package faults

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// cell is one fault at one point of one action.
type cell struct {
	action, point string
	k             kind
	try           func(testing.TB)
	short         bool // its starts get little time
}

func (c cell) name() string { return fmt.Sprintf("%s/%s/%s", c.action, c.point, c.k) }

// cells are all there are. Those whose starts get little time come last, since
// that costs a restart of bangerd.
func (m *matrix) cells() (all []cell) {
	for _, a := range actions() {
		for _, point := range a.points {
			for _, k := range a.kinds(point) {
				all = append(all, cell{a.name, point, k, func(t testing.TB) { m.try(t, a, point, k) }, k == stalled && a.isStart(point)})
			}
		}
	}
	for _, point := range importPoints {
		for _, k := range importKinds {
			all = append(all, cell{"import", point, k, func(t testing.TB) { m.tryImport(t, point, k) }, false})
		}
	}
	slices.SortStableFunc(all, func(a, b cell) int {
		switch {
		case a.short == b.short:
			return 0
		case a.short:
			return 1
		}
		return -1
	})
	return all
}

// choose takes a part of all cells:
//
//	"", "all"   all of them
//	spread      one at each point, with each kind in turn
//	slice:K/N   each Nth, from the Kth on: N slices are the whole
func choose(all []cell, part string) (some []cell, err error) {
	switch {
	case part == "" || part == "all":
		return all, nil
	case part == "spread":
		return spreadOf(all), nil
	}
	var k, n int
	if _, err := fmt.Sscanf(part, "slice:%d/%d", &k, &n); err != nil || k < 1 || k > n {
		return nil, fmt.Errorf("FAULTS=%s: want all, spread, or slice:K/N with K from 1 to N", part)
	}
	for i, c := range all {
		if i%n == k-1 {
			some = append(some, c)
		}
	}
	return some, nil
}

func spreadOf(all []cell) (some []cell) {
	byPoint := map[string][]cell{}
	var points []string
	for _, c := range all {
		point := c.action + "/" + c.point
		if byPoint[point] == nil {
			points = append(points, point)
		}
		byPoint[point] = append(byPoint[point], c)
	}
	for i, point := range points {
		cells := byPoint[point]
		some = append(some, cells[i%len(cells)])
	}
	// In the order of all of them.
	return slices.DeleteFunc(slices.Clone(all), func(c cell) bool {
		return !slices.ContainsFunc(some, func(s cell) bool { return s.name() == c.name() })
	})
}

func TestChoose(t *testing.T) {
	all := (&matrix{}).cells()
	some, err := choose(all, "spread")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		at := func(s cell) bool { return s.action == c.action && s.point == c.point }
		with := func(s cell) bool { return s.k == c.k }
		if !slices.ContainsFunc(some, at) || !slices.ContainsFunc(some, with) {
			t.Errorf("the spread has nothing like %s", c.name())
		}
	}
	seen := map[string]int{}
	for k := 1; k <= 7; k++ {
		some, err := choose(all, fmt.Sprintf("slice:%d/7", k))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range some {
			seen[c.name()]++
		}
	}
	for _, c := range all {
		if seen[c.name()] != 1 {
			t.Errorf("%s is in %d slices", c.name(), seen[c.name()])
		}
	}
	for _, bad := range []string{"x", "slice:0/3", "slice:4/3", "slice:1"} {
		if _, err := choose(all, bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("FAULTS=%s: %v", bad, err)
		}
	}
}
