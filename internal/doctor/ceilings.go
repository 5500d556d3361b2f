package doctor

import (
	"math"
	"path/filepath"
	"strconv"
	"strings"
)

// ceilings keep a guest, or who asks, from what is the host's.
var ceilings = []string{"TasksMax", "MemoryMax", "MemorySwapMax", "LimitCORE", "LogRateLimitIntervalSec", "LogRateLimitBurst"}

// ceilingsOf are those that the installed units set where drop-ins of a directory
// count. Those of a VM are set for it alone, and are not among them.
func (h Host) ceilingsOf(dir string) map[string]string {
	unit := strings.TrimSuffix(filepath.Base(dir), ".d")
	own := map[string]string{}
	for path, text := range h.Units {
		if filepath.Base(path) != unit && filepath.Base(filepath.Dir(path)) != unit+".d" {
			continue
		}
		for _, s := range assignments(text) {
			own[s.key] = s.value
		}
	}
	return own
}

// lifts tells whether a ceiling is higher than the one there is, or may be, on a host
// with so many bytes of memory. A core file holds a guest's memory, so any size of it
// counts.
func lifts(key, value, own string, memory float64) bool {
	if value == own {
		return false
	}
	switch key {
	case "LimitCORE":
		return value != "0"
	case "LogRateLimitIntervalSec": // of which less is more
		return true
	case "TasksMax":
		memory = 0 // a share is of something else
	}
	amount, ok := parseAmount(value, memory)
	if ok && amount == 0 {
		return key == "LogRateLimitBurst" // then there is none
	}
	most, known := parseAmount(own, memory)
	return !ok || !known || amount > most
}

// parseAmount reads a number of bytes or things, or a share of the host's.
func parseAmount(s string, whole float64) (amount float64, ok bool) {
	factor := 1.0
	if share, percent := strings.CutSuffix(s, "%"); percent {
		s, factor = share, whole/100
	} else if i := strings.IndexAny("KMGTPE", s[max(0, len(s)-1):]); i >= 0 {
		s, factor = s[:len(s)-1], math.Pow(1024, float64(i+1))
	}
	amount, err := strconv.ParseFloat(s, 64)
	return amount * factor, err == nil && amount >= 0 && factor > 0
}

// memory of the host in bytes; 0 if that cannot be told.
func (h Host) memory() float64 {
	text, err := h.read("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemTotal:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			if err == nil {
				return kib * 1024
			}
		}
	}
	return 0
}
