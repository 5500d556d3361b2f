package server

import (
	"strings"
	"testing"
)

func TestTrialOfKVM(t *testing.T) {
	for want, c := range map[string]struct {
		v    verdict
		said string
	}{
		"":                {verdict{"success", exited, 0}, ""},
		"computed 0x0":    {verdict{"exit-code", exited, 1}, "a test guest computed 0x0"},
		"come to its end": {verdict{"timeout", 2, 9}, ""}, // CLD_KILLED
		"cannot try a test guest: its unit failed (status 226)": {verdict{"exit-code", exited, 226}, ""},
		"to its end within 5s (oom-kill)":                       {verdict{"oom-kill", 2, 9}, "half a word"},
	} {
		if err := judgeTrial(c.v, c.said); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%+v: got %v, want %q", c.v, err, want)
		}
	}
}
