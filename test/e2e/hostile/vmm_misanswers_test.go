//go:build e2e && hostile

package hostile

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"

	"banger/test/host"
)

// answerTime bounds a start whose VMM does not answer as it should: what bangerd
// gives a start, and an emulated host.
const answerTime = 3 * time.Minute

// A VMM that was hostile from its first moment has bangerd for as long as it
// configures it. Whatever it answers: the start ends, with words that a terminal can
// be shown, bangerd stays as small as it is, and others are served meanwhile.
func TestVMMAnswersWrongly(t *testing.T) {
	other := normal(t)
	before := usage(t, "bangerd.service")
	inventory := host.Inventory(t)
	for what := range vmmAnswers {
		t.Run(what, func(t *testing.T) {
			installVMM(t, plan{atAnswer, what})
			begin := time.Now()
			done := make(chan host.Result, 1)
			go func() { done <- host.Banger(t, "vm", "run", "--rm", "--memory", "128M", "--", "true") }()
			answers(t, "meanwhile", other)
			r := <-done
			took := time.Since(begin)
			t.Logf("exit %d after %.1fs: %.300q", r.Code, took.Seconds(), r.Stderr)
			if r.Code != 125 || took > answerTime {
				t.Errorf("exit %d after %s, want 125 within %s", r.Code, took, answerTime)
			}
			if strings.ContainsFunc(r.Stderr, func(c rune) bool { return c != '\n' && c != '\t' && !unicode.IsPrint(c) }) || len(r.Stderr) > 8000 {
				t.Errorf("it says %.500q, %d bytes", r.Stderr, len(r.Stderr))
			}
			// That it came as far is the test's to show.
			if said := host.Root(t, "journalctl", "--namespace=banger", "--quiet", "--output=cat", fmt.Sprint("--since=@", begin.Unix())); !strings.Contains(said, "the hostile VMM answers: "+what) {
				t.Errorf("the VMM was not asked: %.500q", said)
			}
		})
	}
	before.wantBack(t, "bangerd.service")
	host.Eventually(t, 30*time.Second, func() error { return differs("left behind", inventory, host.Inventory(t)) })
}
