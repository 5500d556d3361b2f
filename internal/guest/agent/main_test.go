package agent

import (
	"fmt"
	"log/slog"
	"os"
	"testing"
)

// TestMain lets the test program be what /proc/self/exe is in a guest: the
// file server.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == SFTPArg {
		if err := SFTP(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// testLogger shows what the agent says when a test fails.
func testLogger(t testing.TB) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}
