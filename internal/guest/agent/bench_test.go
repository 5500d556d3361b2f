package agent

import (
	"io"
	"os/exec"
	"testing"

	"banger/internal/guest"
)

// BenchmarkExec is the agent's part of a command, beside the bare process.
func BenchmarkExec(b *testing.B) {
	b.Run("stream", func(b *testing.B) {
		s := serveExec(b)
		for b.Loop() {
			h, hangUp := s.start(b, guest.Exec{Argv: []string{"true"}})
			if _, err := io.ReadAll(h.Stdout); err != nil {
				b.Fatal(err)
			}
			if exit, err := h.Wait(); err != nil || exit.Code != 0 {
				b.Fatal(exit, err)
			}
			hangUp()
		}
	})
	b.Run("refused", func(b *testing.B) {
		s := serveExec(b)
		for b.Loop() {
			h, hangUp := s.start(b, guest.Exec{Argv: []string{"/no/such"}})
			if _, err := h.Wait(); err != nil {
				b.Fatal(err)
			}
			hangUp()
		}
	})
	b.Run("process", func(b *testing.B) {
		for b.Loop() {
			if err := exec.CommandContext(b.Context(), "true").Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
