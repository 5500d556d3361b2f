package install

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"banger/api"
	"banger/internal/installed"
)

// chooseNetwork says which bridge and network the VMs shall have: what is asked for,
// else what they have, else the default.
func (h *host) chooseNetwork(ctx context.Context, o Options) (bridge, network string, err error) {
	bridge, network = installed.DefaultBridge, installed.DefaultNetwork
	old, had, err := h.oldRecord()
	if err != nil {
		return "", "", err
	}
	if had {
		bridge, network = old.Bridge, old.Network // an administrator may have changed them
	}
	was := [2]string{bridge, network}
	if o.Bridge != "" {
		bridge = o.Bridge
	}
	if o.Network != "" {
		network = o.Network
	}
	if err := installed.CheckNetwork(bridge, network); err != nil {
		return "", "", api.BadRequest("cannot install banger: %v", err)
	}
	if had && was == [2]string{bridge, network} {
		return bridge, network, nil
	}
	if had {
		if err := h.refuseVMs(ctx); err != nil {
			return "", "", err
		}
	}
	return bridge, network, h.refuseTaken(network, bridge, was[0])
}

func (h *host) refuseVMs(ctx context.Context) error {
	vms, err := h.matching(ctx, "banger-vm-*.service", "banger-fsck-*.service")
	if err == nil && len(vms) > 0 {
		err = api.Conflict("cannot change the network while VMs run (%d)", len(vms)).WithHint("stop them: `banger vm list`, `banger vm stop NAME...`")
	}
	return err
}

// refuseTaken refuses a network of which the host has an address elsewhere: it would
// lose the way to the others there.
func (h *host) refuseTaken(network string, own ...string) error {
	if h.addresses == nil {
		return nil
	}
	all, err := h.addresses()
	if err != nil {
		return fmt.Errorf("cannot tell which networks the host is in: %w", err)
	}
	ours, err := netip.ParsePrefix(network)
	if err != nil {
		return err
	}
	for device, prefixes := range all {
		for _, p := range prefixes {
			if !slices.Contains(own, device) && p.Overlaps(ours) {
				return api.Conflict("cannot use the network %s for VMs: %s of this host is in %s", ours.Masked(), device, p.Masked()).
					WithHint("choose another one: `sudo banger system install --network 10.213.0.1/16`")
			}
		}
	}
	return nil
}

// hostAddresses are the IPv4 addresses of each network device.
func hostAddresses() (map[string][]netip.Prefix, error) {
	devices, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	all := map[string][]netip.Prefix{}
	for _, d := range devices {
		addrs, err := d.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
				all[d.Name] = append(all[d.Name], p)
			}
		}
	}
	return all, nil
}

// leaveNetwork removes bridge and rules of the record that is there, if they are to be
// others. The services, which would make them anew, are stopped for that; activate
// starts them.
func (h *host) leaveNetwork(ctx context.Context, bridge, network string) error {
	old, had, err := h.oldRecord()
	if err != nil || !had || old.Bridge == bridge && old.Network == network {
		return err
	}
	services := []string{"bangerd.socket", dnsSocket, "bangerd.service", "banger-helper.socket", "banger-helper.service"}
	if err := h.stop(ctx, services); err != nil {
		return err
	}
	if err := h.refuseVMs(ctx); err != nil { // one was started meanwhile
		_, startErr := h.run(ctx, append([]string{"systemctl", "start"}, services[:4]...)...)
		return errors.Join(err, startErr)
	}
	if _, err := h.run(ctx, h.at(h.programPath("banger-helper")), "forget-network"); err != nil {
		return fmt.Errorf("cannot remove the bridge %s: %w", old.Bridge, err)
	}
	h.say("removed the bridge %s and its rules", old.Bridge)
	return nil
}
