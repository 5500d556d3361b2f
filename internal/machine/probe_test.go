package machine

import "testing"

func TestOnlyDefiniteProbesAreRemembered(t *testing.T) {
	const nests, plain = "flags\t\t: fpu svm vme\r\n", "flags\t\t: fpu vme\r\n"
	for what, c := range map[string]struct {
		known   probeResult
		verdict verdict
		console string
		accel   string
		settled bool
	}{
		"it works":                    {probeResult{}, spoke, nests, accelKVM, true},
		"its guests have no guests":   {probeResult{}, spoke, plain, accelTCG, true},
		"it fails":                    {probeResult{}, ended, "", accelTCG, true},
		"silent once":                 {probeResult{}, silent, "", accelTCG, false},
		"silent again":                {probeResult{BootID: "b", Silent: 1}, silent, "", accelTCG, true},
		"silent in another boot":      {probeResult{BootID: "a", Silent: 1}, silent, "", accelTCG, false},
		"works when it is tried anew": {probeResult{BootID: "b", Silent: 1}, spoke, nests, accelKVM, true},
		"half a console":              {probeResult{}, silent, nests, accelTCG, false},
	} {
		got := c.known.after("b", c.verdict, c.console)
		if got.Accel != c.accel || got.settled("b") != c.settled || got.settled("another boot") {
			t.Errorf("%s: %+v, settled %v", what, got, got.settled("b"))
		}
	}
}
