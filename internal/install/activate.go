package install

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
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
	// more sockets than the one of its name. It can do without them.
	more []string
	// always: it runs from boot on, not only when called.
	always bool
}

// The helper comes first because the daemon calls it when it starts.
var services = []service{
	{name: "banger-helper", programs: []string{"banger-helper", "firecracker", "jailer"}},
	{name: "bangerd", programs: []string{"bangerd", "banger-agent"}, more: []string{dnsSocket}, always: true},
}

// dnsSocket needs a port that somebody else may have.
const dnsSocket = "banger-dns.socket"

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
	if changed[journalFile] {
		// It keeps the consoles' streams, and reads its settings only when it starts.
		if _, err := h.run(ctx, "systemctl", "try-restart", "systemd-journald@banger.service"); err != nil {
			h.say("warning: the VMs' journal has its limits from the next boot on: %v", err)
		}
	}
	// A package's unit may say what it said and still be another file.
	reload := h.layout.Packaged && changed[paths.InstallFile]
	for path := range changed {
		reload = reload || within(h.layout.Units, path) || within(paths.AdminUnits, path)
	}
	if reload {
		if _, err := h.run(ctx, "systemctl", "daemon-reload"); err != nil {
			return fmt.Errorf("cannot make systemd read the units: %w", err)
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
	return h.awaitDaemon(ctx)
}

// awaitDaemon waits until bangerd answers.
func (h *host) awaitDaemon(ctx context.Context) error {
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
	changedUnit := func(u string) bool { return changed[h.unitPath(u)] || changed[ownerPath(u)] }
	isNew := changed[paths.InstallFile] || changedUnit(unit) || slices.ContainsFunc(s.programs, func(p string) bool {
		return changed[h.programPath(p)]
	})
	state, err := h.unitState(ctx, unit)
	if err != nil {
		return err
	}
	sockets := append([]string{socket}, s.more...)
	if state.active && slices.ContainsFunc(sockets, changedUnit) {
		// systemd does not take a new socket for a service that runs.
		if _, err := h.run(ctx, append([]string{"systemctl", "stop", unit}, sockets...)...); err != nil {
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
	for _, extra := range s.more {
		if err := h.enableExtra(ctx, extra, state.active); err != nil {
			return err
		}
	}
	if s.always {
		return h.enable(ctx, unit)
	}
	return nil
}

// enableExtra has a socket started that its service can do without: somebody
// else may have its port. systemd takes none for a service that runs, so a
// socket that failed earlier waits for the service's next start.
func (h *host) enableExtra(ctx context.Context, socket string, serviceRuns bool) error {
	if serviceRuns {
		state, err := h.unitState(ctx, socket)
		if err != nil {
			return err
		}
		if !state.active {
			h.say("warning: %s does not run: see `systemctl status %s`, then restart bangerd.service", socket, socket)
			return nil
		}
	}
	err := h.enable(ctx, socket)
	if p, ok := errors.AsType[*api.Problem](err); ok {
		h.say("warning: %s", p.Detail)
		return nil
	}
	return err
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

type unitState struct {
	active, failed, enabled bool
	state, file             string // systemd's words for them
}

func (h *host) unitState(ctx context.Context, unit string) (unitState, error) {
	out, err := h.run(ctx, "systemctl", "show", "-p", "ActiveState", "-p", "UnitFileState", unit)
	if err != nil {
		return unitState{}, err
	}
	var u unitState
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "ActiveState":
			u.state = value
		case "UnitFileState":
			u.file = value
		}
	}
	u.active, u.failed, u.enabled = u.state == "active", u.state == "failed", u.file == "enabled"
	return u, nil
}

// loadModules spares the first boot after the installation. A kernel may have
// them built in or lack them: doctor judges that, not the installation.
func (h *host) loadModules(ctx context.Context) {
	for _, module := range append(strings.Fields(modulesText), h.kvmModules()...) {
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
