package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"banger/api"
	"banger/internal/doctor"
	"banger/internal/helper"
	"banger/internal/jsonhttp"
	"banger/internal/paths"
	"banger/internal/store"
	"banger/internal/version"
)

// How long one question may take. The helper hashes Firecracker and starts it.
const (
	questionTime = 20 * time.Second
	repairTime   = 2 * time.Minute
)

func (d *Daemon) getDoctor(ctx context.Context, _ *struct{}) ([]api.Check, error) {
	return doctor.Ask(withDoctor(ctx), questionTime, d.questions()), nil
}

// withDoctor names what the helper is asked for in its log, as operations do.
func withDoctor(ctx context.Context) context.Context {
	return jsonhttp.WithOperation(ctx, "op-doctor-"+rand.Text()[:8])
}

// questions are all that bangerd can ask of its host.
func (d *Daemon) questions() []doctor.Question {
	host := d.host
	host.Guest = d.someGuest
	all := host.Questions()
	all = append(all, doctor.Question{ID: "helper", Why: "it does all that needs root", Ask: d.askHelper})
	all = append(all, d.host.InstallationQuestions()...)
	return append(all,
		doctor.One("store", "it is all that is known of VMs, images and kernels", d.checkStore),
		doctor.One("dns", "VMs are reached by their names", func(ctx context.Context) doctor.Finding {
			return d.host.Names(ctx, Zone, doctor.LoopbackNames)
		}),
		doctor.One("bridge", "guests have no network without it", d.checkBridge),
		doctor.One("agents", "an agent of another version may not know what is asked", d.checkAgents),
		doctor.One("default-image", "`vm run` without --image uses it", d.checkImage),
		doctor.One("default-kernel", "`vm run` without --kernel uses it", d.checkKernel),
		doctor.Question{ID: "starts", Why: "no VM starts otherwise", Ask: d.vms.Checks},
	)
}

// askHelper makes one request and judges all it tells, together with what the
// store says of the same VMs.
func (d *Daemon) askHelper(ctx context.Context) []api.Check {
	why := "it does all that needs root"
	before, errBefore := d.ids(ctx, runs)
	facts, err := d.helper.Check(ctx)
	if err != nil {
		return doctor.One("helper", why, failed(err, "systemctl status banger-helper.socket banger-helper.service")).Ask(ctx)
	}
	after, errAfter := d.ids(ctx, runs)
	allTheWhile := slices.DeleteFunc(before, func(id string) bool { return !slices.Contains(after, id) })
	checks := doctor.One("helper", why, func(context.Context) doctor.Finding { return doctor.Pass("it answers") }).Ask(ctx)
	checks = append(checks, doctor.One("versions", "they are made to go together", func(context.Context) doctor.Finding {
		return d.host.Versions(version.Version, facts.HelperVersion)
	}).Ask(ctx)...)
	checks = append(checks, doctor.Facts(facts)...)
	checks = append(checks, doctor.Confinement(facts, allTheWhile, errors.Join(errBefore, errAfter)))
	return append(checks, doctor.One("leftovers", "they hold memory, disk space and addresses", func(ctx context.Context) doctor.Finding {
		return d.checkLeftovers(ctx, facts)
	}).Ask(ctx)...)
}

func failed(err error, fix string) func(context.Context) doctor.Finding {
	return func(context.Context) doctor.Finding { return doctor.Fail(fix, "%v", err) }
}

func runs(v *store.VM) bool { return v.State == api.StateRunning || v.State == api.StatePaused }

func every(*store.VM) bool { return true }

// someGuest is a VM whose name the host should know.
func (d *Daemon) someGuest(ctx context.Context) (name string, addr netip.Addr, found bool) {
	vms, err := d.store.VMs(ctx)
	if err != nil { // check store says so
		return "", netip.Addr{}, false
	}
	for _, v := range vms {
		if p, ok := d.record.GuestAddress(v.Slot); ok && runs(v) {
			return v.Name + "." + Zone, p.Addr(), true
		}
	}
	return "", netip.Addr{}, false
}

// ids of the VMs that are wanted.
func (d *Daemon) ids(ctx context.Context, wanted func(*store.VM) bool) (ids []string, err error) {
	vms, err := d.store.VMs(ctx)
	for _, v := range vms {
		if wanted(v) {
			ids = append(ids, v.ID)
		}
	}
	return ids, err
}

// leftovers looks at the host first and at the records then.
func (d *Daemon) leftovers(ctx context.Context, f helper.HostFacts) (kernel, files doctor.Leftovers, err error) {
	if kernel, files, err = d.host.Traces(f); err != nil {
		return nil, nil, err
	}
	known, err := d.existing(ctx)
	if err != nil {
		return nil, nil, err
	}
	kernel.Forget(known)
	d.host.ForgetEnded(kernel)
	files.Forget(known)
	return kernel, files, nil
}

// existing are the VMs that may have something: one has its record before it has
// anything else, and as long as it has anything or is swept.
func (d *Daemon) existing(ctx context.Context) ([]string, error) {
	known, err := d.ids(ctx, every)
	return append(known, d.vms.Sweeping()...), err
}

func (d *Daemon) checkLeftovers(ctx context.Context, f helper.HostFacts) doctor.Finding {
	kernel, files, err := d.leftovers(ctx, f)
	if err != nil {
		return doctor.Warn("", "cannot tell: %v", err)
	}
	loops := d.host.IdleLoops(ctx)
	known, err := d.existing(ctx)
	if err != nil {
		return doctor.Warn("", "cannot tell: %v", err)
	}
	return doctor.JudgeLeftovers(kernel, files, doctor.ForgetLoops(loops, known))
}

func (d *Daemon) checkStore(ctx context.Context) doctor.Finding {
	if err := d.store.Check(ctx); err != nil {
		return doctor.Fail("stop bangerd, and bring back a copy of "+paths.StateDir+"/banger.db", "%v", err)
	}
	return doctor.Pass("it is whole")
}

func (d *Daemon) checkBridge(ctx context.Context) doctor.Finding {
	running, err := d.ids(ctx, runs)
	if err != nil {
		return doctor.Warn("", "cannot tell: %v", err)
	}
	if len(running) == 0 {
		return doctor.Pass("no VM runs, so none is needed")
	}
	if _, err := os.Lstat("/sys/class/net/" + d.record.Bridge); err != nil {
		f := doctor.Fail("banger doctor --fix", "%s is not there, with %d VMs running", d.record.Bridge, len(running))
		f.Repair = "make the bridge " + d.record.Bridge + " and its rules anew, and join the VMs' ports to it"
		return f
	}
	return doctor.Pass("%s is there", d.record.Bridge)
}

func (d *Daemon) checkAgents(ctx context.Context) doctor.Finding {
	vms, err := d.store.VMs(ctx)
	if err != nil {
		return doctor.Warn("", "cannot tell: %v", err)
	}
	agents := map[string]string{}
	for _, v := range vms {
		if runs(v) && v.Guest != nil {
			agents[v.Name] = v.Guest.Agent
		}
	}
	return doctor.Agents(version.Version, agents)
}

func (d *Daemon) checkImage(ctx context.Context) doctor.Finding {
	_, err := d.store.Image(ctx, d.config.DefaultImage)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return doctor.Warn("banger image import "+d.config.DefaultImage+" FILE.tar", "there is no image %q", d.config.DefaultImage)
	case err != nil:
		return doctor.Warn("see check store", "cannot tell: %v", err)
	}
	return doctor.Pass("%s", d.config.DefaultImage)
}

func (d *Daemon) checkKernel(ctx context.Context) doctor.Finding {
	k, err := d.store.Kernel(ctx, d.config.DefaultKernel)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return doctor.Warn("sudo banger system install, or banger kernel import "+d.config.DefaultKernel+" --from FILE", "there is no kernel %q", d.config.DefaultKernel)
	case err != nil:
		return doctor.Warn("see check store", "cannot tell: %v", err)
	}
	return doctor.Pass("%s, %s", k.Name, k.Release)
}

// repairs are what can be mended without anybody's loss, by the check's id.
var repairs = map[string]func(*Daemon, context.Context) error{
	"leftovers": (*Daemon).clearLeftovers,
	"bridge":    (*Daemon).remakeBridge,
}

// repair mends what the checks of these ids found, and makes them again.
func (d *Daemon) repair(ctx context.Context, in *struct{ Body api.RepairRequest }) ([]api.Check, error) {
	for _, id := range in.Body.Checks {
		if repairs[id] == nil {
			return nil, api.BadRequest("nothing can be repaired of check %.40q", id)
		}
	}
	ctx, cancel := context.WithTimeout(withDoctor(context.WithoutCancel(ctx)), repairTime)
	defer cancel()
	failures := map[string]error{}
	for _, id := range in.Body.Checks {
		d.log.InfoContext(ctx, "repairing", "check", id)
		failures[id] = repairs[id](d, ctx)
	}
	checks := slices.DeleteFunc(doctor.Ask(ctx, questionTime, d.questions()), func(c api.Check) bool { return !slices.Contains(in.Body.Checks, c.ID) })
	for i, c := range checks {
		if err := failures[c.ID]; err != nil {
			checks[i].Status, checks[i].Found = api.CheckFail, fmt.Sprintf("cannot repair it: %v; now: %s", err, c.Found)
		}
	}
	return checks, nil
}

func (d *Daemon) clearLeftovers(ctx context.Context) error {
	facts, err := d.helper.Check(ctx)
	if err != nil {
		return err
	}
	kernel, _, err := d.leftovers(ctx, facts)
	if err != nil {
		return err
	}
	for _, id := range kernel.IDs() {
		if one := d.vms.ClearLeftover(ctx, id); one != nil {
			err = errors.Join(err, fmt.Errorf("VM %s: %w", id, one))
		}
	}
	return err
}

func (d *Daemon) remakeBridge(ctx context.Context) error {
	_, err := d.helper.EnsureBridge(ctx)
	return err
}
