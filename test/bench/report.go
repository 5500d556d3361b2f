package main

import (
	"fmt"
	"slices"
	"time"
)

// row is one figure. Limit 0 means that it is only shown.
type row struct {
	What  string  `json:"what"`
	Unit  string  `json:"unit"` // ms, MiB, MiB/s, ratio
	Value float64 `json:"value"`
	// Floor is what Value is compared with, in the same unit; 0 if nothing is.
	Floor float64 `json:"floor,omitempty"`
	// Limit of Value/Floor where there is a floor, else of Value.
	Limit float64 `json:"limit,omitempty"`
	// AtLeast: Limit is a minimum.
	AtLeast bool `json:"at_least,omitempty"`
}

func (r row) measured() float64 {
	if r.Floor != 0 {
		return r.Value / r.Floor
	}
	return r.Value
}

func (r row) ok() bool {
	switch {
	case r.Limit == 0:
		return true
	case r.AtLeast:
		return r.measured() >= r.Limit
	}
	return r.measured() <= r.Limit
}

func print(rows []row) {
	fmt.Printf("%-62s %12s %12s %8s %9s\n", "figure (median)", "banger", "floor", "ratio", "limit")
	for _, r := range rows {
		floor, ratio, limit, verdict := "", "", "", ""
		if r.Floor != 0 {
			floor, ratio = fmt.Sprintf("%.1f %s", r.Floor, r.Unit), fmt.Sprintf("%.2f", r.Value/r.Floor)
		}
		if r.Limit != 0 {
			limit, verdict = fmt.Sprintf("≤ %.3g", r.Limit), "ok"
			if r.AtLeast {
				limit = fmt.Sprintf("≥ %.3g", r.Limit)
			}
			if !r.ok() {
				verdict = "MISSED"
			}
		}
		fmt.Printf("%-62s %12s %12s %8s %9s %s\n", r.What, fmt.Sprintf("%.1f %s", r.Value, r.Unit), floor, ratio, limit, verdict)
	}
}

func median(ds []time.Duration) float64 {
	if len(ds) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(ds))
	m := s[len(s)/2]
	if len(s)%2 == 0 {
		m = (m + s[len(s)/2-1]) / 2
	}
	return float64(m.Microseconds()) / 1000
}
