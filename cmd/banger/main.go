// Command banger makes and uses virtual machines. It has no rights of its own:
// bangerd does the work.
package main

import (
	"os"

	"banger/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
