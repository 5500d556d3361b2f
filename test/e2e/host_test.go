//go:build e2e

package e2e

import "banger/test/host"

// What these tests need of the host on nearly every line.
var (
	inventory   = host.Inventory
	descriptors = host.Descriptors
	vmFiles     = host.VMFiles
	wantGone    = host.WantGone
	eventually  = host.Eventually
	glob        = host.Glob
	read        = host.Read
	status      = host.Status
	mainPID     = host.MainPID
	root        = host.Root
	command     = host.Command
	banger      = host.Banger
	bangerIn    = host.BangerIn
	must        = host.Must
)
