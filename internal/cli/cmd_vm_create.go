package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func (a *App) vmCreateCommand() *cobra.Command {
	var spec specFlags
	var noStart bool
	cmd := &cobra.Command{
		Use: "create [flags]", Short: "Make a VM and start it, without running anything in it",
		Long: "Prints the name of the new VM. With --no-start only its record is made.",
		Example: `  banger vm create --name box
  banger vm create --name box --memory 2G --no-start
  banger vm create --name web --disk 20G --nat --autostart --restart on-failure`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			vm, err := spec.spec(cmd)
			if err != nil {
				return err
			}
			vm.NoStart = noStart
			c, err := a.connect()
			if err != nil {
				return err
			}
			return (&run{app: a, client: c}).detached(cmd.Context(), vm)
		},
	}
	a.specFlags(cmd, &spec)
	cmd.Flags().BoolVar(&noStart, "no-start", false, "do not start it")
	a.jsonFlag(cmd)
	return cmd
}

// parseMiB reads a size: 512M, 1G, 1GiB; a bare number is MiB.
func parseMiB(s string) (int, error) {
	s = strings.TrimSpace(s)
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > math.MaxInt32 {
			return 0, fmt.Errorf("%q is no size", s)
		}
		return n, nil
	}
	n, err := units.RAMInBytes(s)
	switch {
	case err != nil || n < 0:
		return 0, fmt.Errorf("%q is no size, like 512M, 2G or a number of MiB", s)
	case n < 1<<20 || n%(1<<20) != 0:
		return 0, fmt.Errorf("%q is not a whole number of MiB", s)
	case n>>20 > math.MaxInt32:
		return 0, fmt.Errorf("%q is no size", s)
	}
	return int(n >> 20), nil
}
