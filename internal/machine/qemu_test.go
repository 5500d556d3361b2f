package machine

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"banger/api"
)

func TestReadiness(t *testing.T) {
	g := guest{dir: t.TempDir(), accel: accelKVM}
	if err := os.WriteFile(g.dir+"/qemu.log", []byte("qemu: no such thing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx   context.Context
		says  string
		close bool
		want  func(error) bool
	}{
		"ready":     {t.Context(), "ready kvm=yes\n", false, func(err error) bool { return err == nil }},
		"no KVM":    {t.Context(), "ready kvm=no\n", false, func(err error) bool { return problemCode(err) == api.CodePrerequisite }},
		"QEMU died": {t.Context(), "rea", true, func(err error) bool { return strings.Contains(err.Error(), "no such thing") }},
		"cancelled": {cancelled, "", false, func(err error) bool { return errors.Is(err, context.Canceled) }},
	} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			if _, err := w.WriteString(c.says); err != nil {
				t.Fatal(err)
			}
			if c.close {
				w.Close()
			}
			if err := g.waitReady(c.ctx, r); !c.want(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func problemCode(err error) string {
	var p *api.Problem
	if !errors.As(err, &p) {
		return ""
	}
	return p.Code
}

// The directory's name is the user's: in an option a comma would end a value.
func TestNoPathInOptions(t *testing.T) {
	g := guest{dir: "/home/a,b/machine/x", disk: ownDisk, cpus: 2, memoryMiB: 4096, accel: accelTCG, drives: []drive{{imageDrive, imageFile}}}
	line := strings.Join(g.args(4711), " ")
	if strings.Contains(line, "a,b") {
		t.Errorf("the directory is in %s", line)
	}
	for _, want := range []string{"hostfwd=tcp:127.0.0.1:4711-:22", "cache=writeback", "serial=banger-image", "-smp 2 -m 4096", "-accel tcg"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is missing in %s", want, line)
		}
	}
	g.disposable, g.drives, g.accel = true, nil, accelKVM
	line = strings.Join(g.args(1), " ")
	if !strings.Contains(line, "cache=unsafe") || strings.Contains(line, "banger-image") || !strings.Contains(line, "-accel kvm -cpu host") {
		t.Errorf("got %s", line)
	}
}

func TestNestsGuests(t *testing.T) {
	for cpuinfo, want := range map[string]bool{
		"flags\t\t: fpu vme svm avx\nbugs: x\n": true,
		"flags : fpu vmx\r\n":                   true,
		"flags\t\t: fpu vme avx\n":              false,
		"flags : novmx svmx\n":                  false,
		"model name : svm thing\n":              false,
		"":                                      false,
	} {
		if got := nestsGuests(cpuinfo); got != want {
			t.Errorf("%q: %v", cpuinfo, got)
		}
	}
}

func TestForcedAccel(t *testing.T) {
	t.Setenv(accelVariable, accelTCG)
	if got, err := pickAccel(t.Context(), t.TempDir(), nil); got != accelTCG || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	t.Setenv(accelVariable, "hvf")
	_, err := pickAccel(t.Context(), t.TempDir(), nil)
	wantCode(t, err, api.CodeBadRequest)
}
