//go:build e2e && hostile

package hostile

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"banger/test/host"
)

// TestHostileGuest replaces the agent of a guest by one that answers wrongly,
// without end, slowly or not at all, and looks at what that does to bangerd and
// to another VM.
func TestHostileGuest(t *testing.T) {
	importHostile(t, "guest-hostile")
	host.ImportTiny(t, "guest-tiny")
	for _, image := range []string{"guest-hostile", "guest-tiny"} {
		t.Cleanup(func() { host.Banger(t, "image", "delete", image) })
	}
	for _, name := range []string{"evil", "good"} {
		t.Cleanup(func() { host.Banger(t, "vm", "delete", "--force", name) })
	}
	inventory := host.Inventory(t)
	host.Must(t, "vm", "run", "-d", "--name", "good", "--image", "guest-tiny", "--memory", "128M")
	host.Must(t, "vm", "run", "-d", "--name", "evil", "--image", "guest-hostile", "--memory", "256M")
	host.Must(t, "vm", "exec", "good", "--", "true")
	before := usage(t, "bangerd.service")
	host.Must(t, "vm", "exec", "evil", "--", "sh", "-c", ": > "+goFile)
	host.Eventually(t, 30*time.Second, func() error {
		if r := host.Banger(t, "vm", "health", "evil"); r.Code == 0 {
			return errors.New("its agent still answers")
		}
		return nil
	})

	others := keepUsing(t, "good")
	var asking sync.WaitGroup
	for range 5 { // more questions than there are answers
		for _, args := range [][]string{{"vm", "health", "evil"}, {"vm", "ports", "evil"}, {"vm", "exec", "evil", "--", "true"}, {"vm", "stats", "--json", "evil"}} {
			asking.Go(func() { wantPlain(t, args...) })
		}
	}
	asking.Wait()
	begun := time.Now()
	host.Must(t, "vm", "stop", "--timeout", "5s", "evil")
	stopped := time.Since(begun)
	host.Must(t, "vm", "delete", "evil")
	others(t)
	t.Logf("stop --timeout 5s took %s", stopped.Round(time.Millisecond))
	if stopped > 25*time.Second {
		t.Errorf("stop --timeout 5s took %s", stopped)
	}
	host.Must(t, "vm", "delete", "--force", "good")
	host.Eventually(t, 20*time.Second, func() error { return differs("left behind", inventory, host.Inventory(t)) })
	before.wantBack(t, "bangerd.service")
}

// wantPlain runs a command that may fail, in a bounded time and with words that
// a terminal can be shown.
func wantPlain(t *testing.T, args ...string) {
	begun := time.Now()
	// A session lasts as long as its guest likes; whoever has one can leave.
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
	defer cancel()
	var out bytes.Buffer
	c := host.Command(t, ctx, args...)
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	if err == nil && args[1] != "stats" {
		t.Errorf("%v believes the guest: %.300q", args, out.String())
	}
	if ctx.Err() != nil && args[1] != "exec" {
		t.Errorf("%v did not end", args)
	}
	if d := time.Since(begun); d > time.Minute {
		t.Errorf("%v took %s", args, d)
	}
	if strings.ContainsFunc(out.String(), func(c rune) bool { return c != '\n' && c != '\t' && !unicode.IsPrint(c) }) || out.Len() > 4000 {
		t.Errorf("%v says %.500q", args, out.String())
	}
}

// keepUsing runs commands in a VM until the returned function is called.
func keepUsing(t *testing.T, name string) (end func(t *testing.T)) {
	t.Helper()
	quit := make(chan struct{})
	var task sync.WaitGroup
	var slowest time.Duration
	n := 0
	task.Go(func() {
		for ; ; n++ {
			select {
			case <-quit:
				return
			default:
			}
			begun := time.Now()
			if r := host.Banger(t, "vm", "exec", name, "--", "true"); r.Code != 0 {
				t.Errorf("a command in another VM: %+v", r)
			}
			slowest = max(slowest, time.Since(begun))
		}
	})
	return func(t *testing.T) {
		t.Helper()
		close(quit)
		task.Wait()
		t.Logf("%d commands in %s meanwhile, slowest %s", n, name, slowest.Round(time.Millisecond))
		if n == 0 || slowest > patience {
			t.Errorf("%d commands in %s, slowest %s", n, name, slowest)
		}
	}
}

// importHostile makes an image whose init is this program.
func importHostile(t *testing.T, name string) {
	t.Helper()
	file := "/tmp/banger-" + name + ".tar"
	t.Cleanup(func() { _ = os.Remove(file) })
	host.WriteTiny(t, file)
	if err := addInit(file); err != nil {
		t.Fatal(err)
	}
	host.Must(t, "image", "import", name, file)
}

func addInit(file string) error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	st, err := self.Stat()
	if err != nil {
		return err
	}
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for r := tar.NewReader(strings.NewReader(string(old))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: "sbin/init", Mode: 0o755, Size: st.Size()}); err != nil {
		return err
	}
	if _, err := io.Copy(w, self); err != nil {
		return fmt.Errorf("cannot copy this program: %w", err)
	}
	return errors.Join(w.Close(), f.Close())
}
