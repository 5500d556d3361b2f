package cli

import (
	"fmt"
	"math"
	"strconv"

	"github.com/spf13/cobra"

	"banger/api"
)

// shareFlags are what a VM gets of the host.
type shareFlags struct {
	cpuWeight, ioWeight int
	cpuLimit, ioLimit   string
}

// none is a word for 0 where a flag sets a ceiling.
const none = "none"

// What the flags take; the daemon looks again.
const (
	maxWeight            = 10000
	minMillis, maxMillis = 10, 32000 // of a CPU
	maxIOMiB             = 1 << 20   // a second
)

func (s *shareFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&s.cpuWeight, "cpu-weight", 0, "share of busy CPUs beside others, 1 to 10000 (systemd's default is 100)")
	f.IntVar(&s.ioWeight, "io-weight", 0, "likewise of busy disks, where the host's IO scheduler has weights")
	f.StringVar(&s.cpuLimit, "cpu-limit", "", "most CPUs it may take, e.g. 0.5 or 2; 0 or none = no ceiling")
	f.StringVar(&s.ioLimit, "io-limit", "", "most it may read, and write, a second on each disk, e.g. 50M or a number of MiB; 0 or none = no ceiling")
	for _, flag := range []string{"cpu-weight", "io-weight", "cpu-limit", "io-limit"} {
		complete(cmd, flag, cobra.NoFileCompletions)
	}
}

func (s *shareFlags) change(cmd *cobra.Command, c *api.VMChange) error {
	given := cmd.Flags().Changed
	for _, w := range []struct {
		flag  string
		value *int
		into  **int
	}{{"cpu-weight", &s.cpuWeight, &c.CPUWeight}, {"io-weight", &s.ioWeight, &c.IOWeight}} {
		if !given(w.flag) {
			continue
		}
		if *w.value < 1 || *w.value > maxWeight {
			return usage(cmd, "--%s is %d, and must be 1 to %d", w.flag, *w.value, maxWeight)
		}
		*w.into = w.value
	}
	if given("cpu-limit") {
		n, err := parseCPUs(s.cpuLimit)
		if err != nil {
			return usage(cmd, "--cpu-limit %s", err)
		}
		c.CPULimitMillis = &n
	}
	if given("io-limit") {
		n, err := parseRate(s.ioLimit)
		if err != nil {
			return usage(cmd, "--io-limit %s", err)
		}
		c.IOLimitBytes = &n
	}
	return nil
}

// parseCPUs reads a number of CPUs, in thousandths; 0 = no ceiling.
func parseCPUs(s string) (int, error) {
	if s == none {
		return 0, nil
	}
	n, err := strconv.ParseFloat(s, 64)
	millis := math.Round(n * 1000)
	// What is no number, or infinite, is in no range.
	if err != nil || n != 0 && !(millis >= minMillis && millis <= maxMillis) {
		return 0, fmt.Errorf("%q is no number of CPUs from 0.01 to 32, like 0.5 or 2, nor 0 or none", s)
	}
	if math.Abs(n*1000-millis) > 1e-6 {
		return 0, fmt.Errorf("%q is finer than a thousandth of a CPU", s)
	}
	return int(millis), nil
}

// parseRate reads bytes a second; 0 = no ceiling.
func parseRate(s string) (int64, error) {
	if s == none || s == "0" {
		return 0, nil
	}
	n, err := parseMiB(s)
	if err == nil && n > maxIOMiB {
		err = fmt.Errorf("%q is more than 1TiB a second", s)
	}
	return int64(n) << 20, err
}

// shareFacts are shown of a VM for which they are not the default.
func shareFacts(vm api.VM) [][2]string {
	return [][2]string{
		{"cpu weight", orNothing(vm.CPUWeight > 0, strconv.Itoa(vm.CPUWeight))},
		{"io weight", orNothing(vm.IOWeight > 0, strconv.Itoa(vm.IOWeight))},
		{"cpu limit", orNothing(vm.CPULimitMillis > 0, strconv.FormatFloat(float64(vm.CPULimitMillis)/1000, 'f', -1, 64))},
		{"io limit", orNothing(vm.IOLimitBytes > 0, bytesText(vm.IOLimitBytes)+"/s")},
	}
}
