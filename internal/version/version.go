// Package version tells which build this is.
package version

// Version is set by the linker: -X banger/internal/version.Version=v0.1.0.
var Version = "dev"
