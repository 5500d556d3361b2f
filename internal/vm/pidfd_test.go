package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"banger/internal/helper"
)

func TestGone(t *testing.T) {
	dir := t.TempDir()
	list := ""
	var kids []*exec.Cmd
	for range 2 {
		c := exec.CommandContext(t.Context(), "sleep", "60")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		kids = append(kids, c)
		list += strconv.Itoa(c.Process.Pid) + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	ended, stop, err := gone(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	end := func(c *exec.Cmd) {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	end(kids[1])
	select {
	case <-ended:
		t.Fatal("one is still there")
	case <-time.After(20 * time.Millisecond):
	}
	end(kids[0])
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody told that they have gone")
	}
	if ended, stop, err = gone(dir); err != nil {
		t.Fatal(err)
	}
	defer stop()
	<-ended // they had gone before
	if _, _, err := gone(filepath.Join(dir, "none")); err == nil {
		t.Error("a cgroup that is not there")
	}
}

func TestGoneIsNotToldWhenTheWaitingEnds(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		t.Fatal(err)
	}
	ended, stop, err := gone(dir)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	select {
	case <-ended:
		t.Error("this process has not ended")
	case <-time.After(20 * time.Millisecond):
	}
}

func TestTheVerdictOnAnEarlierRunIsNotForTheNextOne(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	const id = "0123456789ab"
	old := helper.Exit{ID: id, Result: "success", UnixNano: 1}
	writeExit(t, m.ExitDir, old)
	told, done := m.exits.waitForNew(id)
	defer done()
	writeExit(t, m.ExitDir, old) // is told late
	writeExit(t, m.ExitDir, helper.Exit{ID: id, Result: "signal", UnixNano: 2})
	if e := <-told; e.UnixNano != 2 {
		t.Errorf("told %+v", e)
	}
}
