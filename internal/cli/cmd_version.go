package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"banger/api"
	"banger/internal/version"
)

// versions is the answer of `version --json`.
type versions struct {
	Client api.Version  `json:"client"`
	Daemon *api.Version `json:"daemon,omitempty"`
	Host   string       `json:"host"`
	Error  *api.Problem `json:"error,omitempty"`
}

func (a *App) versionCommand() *cobra.Command {
	var clientOnly bool
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of banger and of bangerd",
		Long: "Fails when bangerd cannot be reached or speaks another API than this banger.",
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: api.Version{Version: version.Version, API: api.APIVersion}}
			var failed error
			if !clientOnly {
				failed = a.askDaemonVersion(cmd, &v)
			}
			if a.json {
				if err := a.printJSON(v); err != nil {
					return err
				}
				return failed
			}
			if _, err := fmt.Fprintf(a.Out, "banger   %s (API %d)\n", v.Client.Version, v.Client.API); err != nil {
				return err
			}
			if v.Daemon != nil {
				if _, err := fmt.Fprintf(a.Out, "bangerd  %s (API %d) at %s, for %s\n", plain(v.Daemon.Version), v.Daemon.API, v.Host, plain(v.Daemon.Owner)); err != nil {
					return err
				}
			}
			return failed
		},
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "do not ask bangerd")
	a.jsonFlag(cmd)
	return cmd
}

func (a *App) askDaemonVersion(cmd *cobra.Command, v *versions) error {
	c, err := a.connect()
	if err == nil {
		v.Host = c.Host()
		var d api.Version
		if d, err = c.Version(cmd.Context()); err == nil {
			v.Daemon = &d
			err = c.SameAPI(d)
		}
	}
	if err != nil {
		v.Error = problemOf(err)
	}
	return err
}
