// Command banger-agent makes an image a banger guest. It is /init of the
// guest's initrd; see package agent for what it does there.
package main

import (
	"fmt"
	"os"

	"banger/internal/guest/agent"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "banger-agent:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	// Only our own processes pass these names; the kernel passes pid 1 what
	// it did not understand of its command line.
	if len(args) == 1 && os.Getpid() != 1 {
		switch args[0] {
		case agent.ServeArg:
			return agent.Serve()
		case agent.SFTPArg:
			return agent.SFTP()
		}
	}
	return agent.Pid1()
}
