package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/paths"
)

// memory reads what the services hold after some VMs came and went.
func (b *bench) memory(ctx context.Context) ([]row, error) {
	const churn = 20
	if err := b.churn(ctx, churn); err != nil {
		return nil, err
	}
	daemon, helper, err := residents(ctx)
	return []row{
		{What: fmt.Sprintf("bangerd resident after %d more VMs", churn), Unit: "MiB", Value: daemon, Limit: 40},
		{What: fmt.Sprintf("banger-helper resident after %d more VMs", churn), Unit: "MiB", Value: helper, Limit: 15},
	}, err
}

// growth compares the services after 20 VMs with the same after 200. What a Go
// program holds moves by some MiB with the collector's mood.
func (b *bench) growth(ctx context.Context) ([]row, error) {
	const few, many, mood = 20, 200, 4
	if err := b.churn(ctx, few); err != nil {
		return nil, err
	}
	daemon, helper, err := residents(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.churn(ctx, many-few); err != nil {
		return nil, err
	}
	daemonNow, helperNow, err := residents(ctx)
	return []row{
		{What: fmt.Sprintf("bangerd resident after %d VMs", few), Unit: "MiB", Value: daemon, Limit: 40},
		{What: fmt.Sprintf("  growth up to %d VMs", many), Unit: "MiB", Value: daemonNow - daemon, Limit: mood},
		{What: fmt.Sprintf("banger-helper resident after %d VMs", few), Unit: "MiB", Value: helper, Limit: 15},
		{What: fmt.Sprintf("  growth up to %d VMs", many), Unit: "MiB", Value: helperNow - helper, Limit: mood},
	}, err
}

// churn lets small VMs come and go, four at a time.
func (b *bench) churn(ctx context.Context, count int) error {
	return each(make([]struct{}, count), func(struct{}) error {
		_, err := b.banger(ctx, "vm", "run", "--rm", "--image", smallImage, "--vcpu", "1", "--memory", "128", "--", "true")
		return err
	})
}

func residents(ctx context.Context) (daemon, helper float64, err error) {
	if daemon, err = resident(ctx, "bangerd.service"); err == nil {
		helper, err = resident(ctx, "banger-helper.service")
	}
	return daemon, helper, err
}

// resident is VmRSS of a service's main process in MiB.
func resident(ctx context.Context, unit string) (float64, error) {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=MainPID", "--value", unit).Output()
	if err != nil {
		return 0, err
	}
	raw, err := os.ReadFile("/proc/" + strings.TrimSpace(string(out)) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			return float64(kib) / 1024, err
		}
	}
	return 0, fmt.Errorf("cannot read the memory of %s", unit)
}

func (b *bench) sizes(context.Context) ([]row, error) {
	st, err := os.Stat(filepath.Join(paths.LibexecDir, "banger-agent"))
	if err != nil {
		return nil, err
	}
	return []row{{What: "agent, unpacked", Unit: "MiB", Value: float64(st.Size()) / (1 << 20), Limit: 8}}, nil
}
