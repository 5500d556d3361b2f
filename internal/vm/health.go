package vm

import (
	"context"
	"errors"
	"net/http"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/store"
)

// maxPorts bounds what an agent can make us tell.
const maxPorts = 4096

// Health asks the agent of a running VM how it is.
func (m *Manager) Health(ctx context.Context, ref string) (api.Health, error) {
	var out api.Health
	err := m.askAgent(ctx, ref, func(ctx context.Context, v *store.VM, agent *guest.Client) error {
		begun := time.Now()
		h, err := agent.Health(ctx)
		out = api.Health{Name: v.Name, ID: v.ID, Phase: string(h.Phase), Milliseconds: milliseconds(time.Since(begun)),
			Guest: api.Guest{Kernel: h.Kernel, BootID: h.BootID, Init: h.Init, Agent: h.Version}}
		return err
	})
	return out, err
}

// Ports lists what listens in a running VM.
func (m *Manager) Ports(ctx context.Context, ref string) ([]api.Port, error) {
	out := []api.Port{}
	err := m.askAgent(ctx, ref, func(ctx context.Context, _ *store.VM, agent *guest.Client) error {
		ports, err := agent.Ports(ctx)
		for _, p := range ports[:min(len(ports), maxPorts)] {
			out = append(out, api.Port(p))
		}
		return err
	})
	return out, err
}

// askAgent makes one question to a guest, which may be hostile or frozen.
func (m *Manager) askAgent(ctx context.Context, ref string, ask func(context.Context, *store.VM, *guest.Client) error) error {
	v, err := m.Get(ctx, ref)
	if err != nil {
		return err
	}
	if err := reachable("cannot reach VM %q", v); err != nil {
		return err
	}
	m.touch(v.ID)
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	agent := m.jailOf(v).agent()
	defer agent.Close()
	err = ask(ctx, v, agent)
	if err == nil {
		return nil
	}
	if now, err := m.Get(context.WithoutCancel(ctx), v.ID); err != nil {
		return err
	} else if err := reachable("cannot reach VM %q", now); err != nil {
		return err // it has ended, or was paused, in the middle of the question
	}
	if p, ok := errors.AsType[*api.Problem](err); ok { // it did answer
		p = api.Problemf(http.StatusBadGateway, p.Code, "cannot ask VM %q: %s", v.Name, p.Detail)
		if p.Code == api.CodeNotFound {
			p.Code = api.CodePrerequisite
			return p.WithHint("its agent is older than bangerd: `banger vm restart %s` gives it a new one", v.Name)
		}
		return p
	}
	return api.Problemf(http.StatusGatewayTimeout, api.CodeUnavailable, "cannot reach VM %q: its agent does not answer: %v", v.Name, err).
		WithHint("its console may tell why: `banger vm logs %s`", v.Name)
}
