package helper

import (
	"fmt"
	"net/http"
	"os"
	"strings"

	"banger/api"
	"banger/internal/paths"
)

// CheckForwarding refuses NAT on a host that forwards no IPv4 packets, as the file
// forwardSwitch (paths.ForwardSwitch) says. The helper asks before it allows NAT to
// a guest, bangerd before that guest boots.
func CheckForwarding(forwardSwitch string) error {
	raw, err := os.ReadFile(forwardSwitch)
	if err != nil {
		return fmt.Errorf("cannot tell whether the host forwards packets: %w", err)
	}
	if strings.TrimSpace(string(raw)) != "0" {
		return nil
	}
	return api.Problemf(http.StatusPreconditionFailed, api.CodePrerequisite, "this host does not forward IPv4 packets, so NAT is not possible").
		WithHint("`sysctl -w net.ipv4.ip_forward=1`; something overrides %s", paths.SysctlFile)
}
