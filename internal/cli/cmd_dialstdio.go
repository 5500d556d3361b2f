package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"banger/client"
)

// dialStdioCommand is what a banger on another host starts here through ssh.
func (a *App) dialStdioCommand() *cobra.Command {
	return &cobra.Command{
		Use: "dial-stdio", Hidden: true,
		Short: "Join stdin and stdout to this host's bangerd",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			host := a.host
			if host == "local" {
				host = ""
			}
			c, err := client.New(host) // never BANGER_HOST: that could lead in circles
			if err != nil {
				return err
			}
			return a.dialStdio(cmd.Context(), c)
		},
	}
}

// dialStdio copies both ways. The end of stdin is passed on as a half-close;
// the end of the daemon's side ends all.
func (a *App) dialStdio(ctx context.Context, c *client.Client) error {
	conn, err := c.DialDaemon(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	go func() {
		_, err := io.Copy(conn, a.In)
		half, ok := conn.(interface{ CloseWrite() error })
		if err != nil || !ok || half.CloseWrite() != nil {
			_ = conn.Close() // the other direction ends with it
		}
	}()
	if _, err := io.Copy(a.Out, conn); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("cannot carry on: %w", err)
	}
	return nil
}
