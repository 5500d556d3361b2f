package agent

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
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
	out := &testOutput{to: t.Output()}
	t.Cleanup(out.end)
	return slog.New(slog.NewTextHandler(out, nil))
}

// testOutput drops what a connection logs that outlives its test.
type testOutput struct {
	mu sync.Mutex
	to io.Writer
}

func (o *testOutput) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.to.Write(p)
}

func (o *testOutput) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.to = io.Discard
}
