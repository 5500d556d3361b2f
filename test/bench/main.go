// Command bench measures an installed banger against a floor: jailer and
// Firecracker driven by hand, with the same kernel, initrd, image and size, in
// the same run. It prints medians and ratios and fails when a ratio is above
// its limit. Run as root on a host where banger is installed and has its
// default image: make bench.
//
// The two things compared alternate, since boots in an emulated host come in
// two kinds, seconds apart, that hit any VMM alike.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	runs := flag.Int("n", 7, "runs of each side")
	only := flag.String("only", "", "parts to run, separated by commas: "+partNames())
	asJSON := flag.Bool("json", false, "print figures as JSON")
	port := flag.Int("sink", 0, "serve the other end of the network part on this port")
	flag.Parse()
	if *port != 0 {
		fmt.Fprintln(os.Stderr, "bench:", sink(*port))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	rows, err := measure(ctx, *runs, strings.FieldsFunc(*only, func(r rune) bool { return r == ',' }))
	if *asJSON {
		if err := json.NewEncoder(os.Stdout).Encode(rows); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	} else {
		print(rows)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	for _, r := range rows {
		if !r.ok() {
			os.Exit(1)
		}
	}
}

func partNames() string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return strings.Join(names, " ")
}
