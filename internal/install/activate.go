package install

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/api"
	"banger/internal/jsonhttp"
	"banger/internal/paths"
)

// service is one of our two daemons with the files that make it what it is.
type service struct {
	name     string
	programs []string
	// always: it runs from boot on, not only when called.
	always bool
}

// The helper comes first because the daemon calls it when it starts.
var services = []service{
	{name: "banger-helper", programs: []string{"banger-helper", "firecracker", "jailer"}},
	{name: "bangerd", programs: []string{"bangerd", "banger-agent"}, always: true},
}

// guestsUnit stops the VMs when the host goes down.
const guestsUnit = "banger-guests.service"

// patience with bangerd, which may have a store to migrate and VMs to find.
const patience = 90 * time.Second

// activate makes what runs equal to what is installed. VMs are not touched.
func (h *host) activate(ctx context.Context, changed map[string]bool) error {
	h.loadModules(ctx)
	if changed[paths.SysctlFile] {
		// What systemd-sysctl does at boot. A host that forbids it is told
		// when somebody asks for NAT.
		if err := os.WriteFile(h.at("/proc/sys/net/ipv4/ip_forward"), []byte("1\n"), 0o644); err != nil {
			h.say("warning: cannot let the host forward packets: %v", err)
		}
	}
	for path := range changed {
		if strings.HasPrefix(path, paths.UnitDir+"/") {
			if _, err := h.run(ctx, "systemctl", "daemon-reload"); err != nil {
				return fmt.Errorf("cannot make systemd read the units: %w", err)
			}
			break
		}
	}
	for _, s := range services {
		if err := h.bringUp(ctx, s, changed); err != nil {
			return fmt.Errorf("cannot bring up %s: %w", s.name, err)
		}
	}
	// Never restarted: its end is the VMs'.
	if err := h.enable(ctx, guestsUnit); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := jsonhttp.Call(ctx, h.daemon, http.MethodGet, "http://bangerd/v1/version", nil, &api.Version{}); err != nil {
		return api.Problemf(http.StatusServiceUnavailable, api.CodeUnavailable, "banger is installed but bangerd does not answer: %v", err).
			WithHint("see `journalctl -u bangerd.service -n 50`")
	}
	return nil
}

func (h *host) bringUp(ctx context.Context, s service, changed map[string]bool) error {
	unit, socket := s.name+".service", s.name+".socket"
	isNew := changed[paths.InstallFile] || changed[unitPath(unit)] || slices.ContainsFunc(s.programs, func(p string) bool {
		return changed[filepath.Join(paths.LibexecDir, p)]
	})
	state, err := h.unitState(ctx, unit)
	if err != nil {
		return err
	}
	if state.active && changed[unitPath(socket)] {
		// systemd does not take a new socket for a service that runs.
		if _, err := h.run(ctx, "systemctl", "stop", unit, socket); err != nil {
			return err
		}
		state.active = false
	} else if state.active && isNew {
		if _, err := h.run(ctx, "systemctl", "restart", unit); err != nil {
			return err
		}
		h.say("restarted %s", unit)
	}
	if err := h.enable(ctx, socket); err != nil {
		return err
	}
	if s.always {
		return h.enable(ctx, unit)
	}
	return nil
}

// enable has the unit started now and at every boot.
func (h *host) enable(ctx context.Context, unit string) error {
	state, err := h.unitState(ctx, unit)
	if err != nil {
		return err
	}
	if !state.enabled {
		if _, err := h.run(ctx, "systemctl", "enable", "--quiet", unit); err != nil {
			return err
		}
		h.say("enabled %s", unit)
	}
	if state.failed { // else systemd may say that it failed too often lately
		if _, err := h.run(ctx, "systemctl", "reset-failed", unit); err != nil {
			return err
		}
	}
	if !state.active {
		if _, err := h.run(ctx, "systemctl", "start", unit); err != nil {
			return api.Problemf(http.StatusServiceUnavailable, api.CodeUnavailable, "cannot start %s: %v", unit, err).
				WithHint("see `journalctl -u %s -n 50`", unit)
		}
		h.say("started %s", unit)
	}
	return nil
}

type unitState struct{ active, failed, enabled bool }

func (h *host) unitState(ctx context.Context, unit string) (unitState, error) {
	out, err := h.run(ctx, "systemctl", "show", "-p", "ActiveState", "-p", "UnitFileState", unit)
	if err != nil {
		return unitState{}, err
	}
	lines := strings.Split(out, "\n")
	return unitState{
		active:  slices.Contains(lines, "ActiveState=active"),
		failed:  slices.Contains(lines, "ActiveState=failed"),
		enabled: slices.Contains(lines, "UnitFileState=enabled"),
	}, nil
}

func unitPath(name string) string { return filepath.Join(paths.UnitDir, name) }

// loadModules spares the first boot after the installation. A kernel may have
// them built in or lack them: doctor judges that, not the installation.
func (h *host) loadModules(ctx context.Context) {
	for _, module := range append(strings.Fields(strings.SplitN(modulesText, "\n", 2)[1]), h.kvmModules()...) {
		loaded := h.at("/sys/module/" + module)
		if _, err := os.Stat(loaded); err == nil {
			continue
		}
		if _, err := h.run(ctx, "modprobe", module); err != nil {
			h.say("warning: cannot load kernel module %s: %v", module, err)
		} else if _, err := os.Stat(loaded); err == nil {
			h.say("loaded kernel module %s", module)
		}
	}
}

// kvmModules names the module for this CPU's virtualisation, if it has one.
func (h *host) kvmModules() []string {
	raw, err := os.ReadFile(h.at("/proc/cpuinfo"))
	if err != nil {
		return nil
	}
	flags := strings.Fields(string(raw))
	switch {
	case slices.Contains(flags, "vmx"):
		return []string{"kvm_intel"}
	case slices.Contains(flags, "svm"):
		return []string{"kvm_amd"}
	}
	return nil
}

func daemonClient(socket string) *http.Client {
	return jsonhttp.NewHTTPClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	})
}
