package cli

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/guest"
)

// settingFlags are what a VM can be made with and changed to.
type settingFlags struct {
	image, kernel, memory, disk, network, restart, idle string
	vcpu                                                int
	nat, autostart                                      bool
	shares                                              shareFlags
}

var policies = []string{string(api.RestartNo), string(api.RestartOnFailure), string(api.RestartAlways), string(api.RestartNever)}

func (a *App) settingFlags(cmd *cobra.Command, s *settingFlags, otherwise string) {
	f := cmd.Flags()
	f.StringVar(&s.image, "image", "", "image of its root disk"+otherwise)
	f.StringVar(&s.kernel, "kernel", "", "guest kernel"+otherwise)
	f.IntVar(&s.vcpu, "vcpu", 0, "number of virtual CPUs"+otherwise)
	f.StringVar(&s.memory, "memory", "", "memory, e.g. 512M, 2G or a number of MiB"+otherwise)
	f.StringVar(&s.disk, "disk", "", "size of a work disk, mounted at /root, e.g. 20G; it can grow, never shrink")
	f.BoolVar(&s.nat, "nat", false, "let the guest reach what the host can")
	f.StringVar(&s.network, "network", "", "name of a network whose VMs may talk to each other")
	f.BoolVar(&s.autostart, "autostart", false, "start it when the host has booted")
	f.StringVar(&s.restart, "restart", "", "what follows an end nobody asked for: "+strings.Join(policies, ", "))
	f.StringVar(&s.idle, "idle-stop", "", "stop it when nobody used it for so long, e.g. 30m; 0 = never")
	s.shares.add(cmd)
	complete(cmd, "image", a.completeImages)
	complete(cmd, "kernel", a.completeKernels)
	complete(cmd, "restart", completePolicies)
	for _, free := range []string{"vcpu", "memory", "disk", "network", "idle-stop"} {
		complete(cmd, free, cobra.NoFileCompletions)
	}
}

// change is what the flags on the command line say.
func (s *settingFlags) change(cmd *cobra.Command) (api.VMChange, error) {
	var c api.VMChange
	given := cmd.Flags().Changed
	for flag, to := range map[string]struct {
		value *string
		into  **string
	}{"image": {&s.image, &c.Image}, "kernel": {&s.kernel, &c.Kernel}, "network": {&s.network, &c.Network}} {
		if given(flag) {
			*to.into = to.value
		}
	}
	for flag, to := range map[string]struct {
		value *bool
		into  **bool
	}{"nat": {&s.nat, &c.NAT}, "autostart": {&s.autostart, &c.Autostart}} {
		if given(flag) {
			*to.into = to.value
		}
	}
	if given("vcpu") {
		if s.vcpu < 1 {
			return c, usage(cmd, "--vcpu is %d, and must be at least 1", s.vcpu)
		}
		c.VCPU = &s.vcpu
	}
	if given("network") && s.network != "" && !guest.ValidName(s.network) {
		return c, badName(s.network)
	}
	if given("restart") {
		if !slices.Contains(policies, s.restart) {
			return c, usage(cmd, "--restart is %q, and must be one of %s", s.restart, strings.Join(policies, ", "))
		}
		policy := api.Restart(s.restart)
		c.Restart = &policy
	}
	if err := s.shares.change(cmd, &c); err != nil {
		return c, err
	}
	err := s.sizes(cmd, &c)
	return c, err
}

// sizes reads the flags that have units.
func (s *settingFlags) sizes(cmd *cobra.Command, c *api.VMChange) error {
	given := cmd.Flags().Changed
	if given("memory") {
		n, err := parseMiB(s.memory)
		if err != nil {
			return usage(cmd, "--memory %s", err)
		}
		c.MemoryMiB = &n
	}
	if given("disk") {
		n, err := parseMiB(s.disk)
		if err != nil {
			return usage(cmd, "--disk %s", err)
		}
		bytes := int64(n) << 20
		c.DiskBytes = &bytes
	}
	if given("idle-stop") {
		d, err := time.ParseDuration(s.idle)
		if s.idle == "0" {
			err = nil
		}
		if err != nil || d < 0 || d > math.MaxInt32*time.Second || d > 0 && d < time.Second {
			return usage(cmd, "--idle-stop %q is no duration from 1s up, like 30m or 2h, nor 0", s.idle)
		}
		seconds := int(d / time.Second)
		c.IdleStopSeconds = &seconds
	}
	return nil
}

func (a *App) vmSetCommand() *cobra.Command {
	var s settingFlags
	var name string
	cmd := &cobra.Command{
		Use: "set NAME... [flags]", Short: "Change the settings of VMs",
		Long: `What is not given stays as it is. A VM that does not run gets all of it with its
next start. One that runs gets disk, nat, network, autostart, restart and idle-stop
at once; the command says what has to wait for a restart, as all of vcpu, memory,
kernel, cpu-weight, io-weight, cpu-limit and io-limit do. Another image needs a VM
that does not run: it gets a new root disk, and keeps its work disk.`,
		Example: `  banger vm set box --memory 4G --vcpu 4
  banger vm set box --disk 50G            more room, also while it runs
  banger vm set box web --nat=false
  banger vm set box --cpu-weight 20 --cpu-limit none
  banger vm set box --name crate`,
		Args:              args(1, -1, "the name of at least one VM"),
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			change, err := s.change(cmd)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("name") {
				if len(refs) > 1 {
					return usage(cmd, "--name is for one VM, and there are %d", len(refs))
				}
				if !guest.ValidName(name) {
					return badName(name)
				}
				change.Name = &name
			}
			if change == (api.VMChange{}) {
				return usage(cmd, "%s needs something to change", cmd.CommandPath())
			}
			return a.setVMs(cmd.Context(), unique(refs), change)
		},
	}
	a.settingFlags(cmd, &s, "")
	cmd.Flags().StringVar(&name, "name", "", "another name")
	complete(cmd, "name", cobra.NoFileCompletions)
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) setVMs(ctx context.Context, refs []string, change api.VMChange) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	answers := inOrder(refs, func(ref string) answer {
		vm, err := c.ChangeVM(ctx, ref, change)
		if err != nil {
			return answer{err: err}
		}
		return answer{VM: &vm}
	})
	late := []string{}
	for _, ans := range answers {
		if ans.err == nil && len(ans.VM.Stale) > 0 {
			late = append(late, ans.VM.Name)
			a.talk.note("%s: %s will hold after a restart", ans.VM.Name, strings.Join(ans.VM.Stale, ", "))
		}
	}
	if len(late) > 0 {
		a.talk.hint("banger vm restart " + strings.Join(late, " "))
	}
	return a.tellAnswers(ctx, "change ", answers, func(good []answer) error {
		for _, ans := range good {
			if _, err := fmt.Fprintln(a.Out, ans.VM.Name); err != nil {
				return err
			}
		}
		return nil
	})
}
