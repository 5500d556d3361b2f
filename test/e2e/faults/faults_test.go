//go:build e2e && faults

// Package faults is the fault matrix: for every step of what banger does to a
// VM, every way in which it can go wrong there, and then a look at what is left.
// It needs programs built with the tag "faults"; `make test-faults` installs
// them in the lab. FAULTS chooses a part, see choose.
package faults

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/api"
	"banger/client"
	"banger/internal/fault"
	"banger/internal/paths"
	"banger/test/host"
)

func spread() bool { return os.Getenv("FAULTS") == "spread" }

// points makes the directory of the injected faults.
func points(t *testing.T) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(fault.Dir), os.MkdirAll(fault.Dir, 0o777), os.Chmod(fault.Dir, 0o777)); err != nil {
		t.Fatal(err) // the owner's daemon renames in it
	}
	t.Cleanup(func() { _ = os.RemoveAll(fault.Dir) })
}

// ownVMs begin the names of the VMs that these tests make.
var ownVMs = regexp.MustCompile(`^(bystander$|victim-|cycle-)`)

// tidy removes what a run that was interrupted has left.
func tidy(t *testing.T, c *client.Client) {
	t.Helper()
	vms, err := c.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vms {
		if ownVMs.MatchString(v.Name) {
			host.Must(t, "vm", "delete", "--force", v.Name)
		}
	}
	for _, name := range []string{tinyImage, otherImage, importName} {
		if err := c.DeleteImage(t.Context(), name); err != nil && !isGone(err) {
			t.Fatal(err)
		}
	}
}

func TestMatrix(t *testing.T) {
	points(t)
	c, err := client.New("")
	if err != nil {
		t.Fatal(err)
	}
	tidy(t, c)
	for _, name := range []string{tinyImage, otherImage} {
		host.ImportTiny(t, name)
		t.Cleanup(func() { host.Must(t, "image", "delete", name) })
	}
	config, err := os.ReadFile(paths.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	m := &matrix{c: c, by: newBystander(t), config: string(config) + "\n", results: map[string]string{}}
	m.baseline = host.Inventory(t)
	m.images = host.Images(t)
	t.Cleanup(func() {
		m.shortStarts(t, false)
		m.drop(t)
	})
	all := m.cells()
	some, err := choose(all, os.Getenv("FAULTS"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d cells of %d", len(some), len(all))
	for _, c := range some {
		m.run(t, c)
	}
	m.print(t)
	for _, again := range m.again {
		t.Logf("A GUEST STOOD STILL AT ITS BOOT, the emulation's known defect; tried once more: %s", again)
	}
}

// matrix is the run as a whole.
type matrix struct {
	c        *client.Client // which is quicker than the CLI
	by       *bystander
	baseline []string
	images   []string
	config   string  // bangerd's, as it was
	short    bool    // it has been changed
	victim   *api.VM // nil: there is none
	made     int
	results  map[string]string
	again    []string // cells that got a second try
}

// run tries a cell.
func (m *matrix) run(t *testing.T, c cell) {
	ran := false
	begun := time.Now()
	ok := t.Run(c.name(), func(t *testing.T) {
		ran = true
		a := attemptAt(t, c.try)
		if a.failed && a.stoodStill() {
			t.Logf("A GUEST STOOD STILL AT ITS BOOT: once more")
			m.again = append(m.again, c.name())
			a = attemptAt(t, c.try)
		}
		if a.failed {
			t.Fail()
		}
	})
	if !ran {
		return // -run names another
	}
	m.results[c.name()] = map[bool]string{true: fmt.Sprintf("ok %.0fs", time.Since(begun).Seconds()), false: "FAILED"}[ok]
}

// print shows one line per point, one column per kind.
func (m *matrix) print(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-38s", "")
	for _, k := range kinds {
		fmt.Fprintf(&b, " %-15s", k)
	}
	row := func(action, point string) {
		fmt.Fprintf(&b, "\n%-38s", action+" "+point)
		for _, k := range kinds {
			r := m.results[cell{action: action, point: point, k: k}.name()]
			if r == "" {
				r = "-"
			}
			fmt.Fprintf(&b, " %-15s", r)
		}
	}
	for _, a := range actions() {
		for _, point := range a.points {
			row(a.name, point)
		}
	}
	for _, point := range importPoints {
		row("import", point)
	}
	t.Log(b.String())
}

// bystander is a VM that must never notice. A session with it stays open for as
// long as the test runs.
type bystander struct {
	name string
	in   io.WriteCloser
	out  *bufio.Reader
	n    int
}

func newBystander(t *testing.T) *bystander {
	t.Helper()
	by := &bystander{name: "bystander"}
	host.Must(t, "vm", "run", "-d", "--name", by.name, "--image", tinyImage, "--memory", "128M")
	t.Cleanup(func() { host.Must(t, "vm", "delete", "--force", by.name) })
	c := host.Session(t, "vm", "exec", by.name, "--", "cat")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = c.Wait() // what counts has been read
	})
	by.in, by.out = in, bufio.NewReader(out)
	by.ask(t)
	return by
}

// ask sends a line through the session and wants it back.
func (by *bystander) ask(t testing.TB) {
	t.Helper()
	by.n++
	line := fmt.Sprintf("line %d\n", by.n)
	answer := make(chan string, 1)
	go func() {
		if _, err := io.WriteString(by.in, line); err != nil {
			answer <- err.Error()
			return
		}
		got, err := by.out.ReadString('\n')
		if err != nil {
			got = err.Error()
		}
		answer <- got
	}()
	select {
	case got := <-answer:
		if got != line {
			t.Fatalf("the session with the other VM says %q", got)
		}
	case <-time.After(time.Minute):
		t.Fatal("the session with the other VM does not answer")
	}
}

func (m *matrix) show(t testing.TB, name string) api.VM {
	t.Helper()
	v, err := m.c.VM(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// done waits for the end of an operation, which must be a good one.
func (m *matrix) done(t testing.TB, op api.Operation, err error) {
	t.Helper()
	if err == nil {
		op, err = m.c.Watch(context.WithoutCancel(t.Context()), op.ID, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if op.Status != api.OperationSucceeded {
		t.Fatalf("%s: %v\n%s", op.Kind, op.Error, host.Journal(40))
	}
}

// answers asks the guest's agent.
func (m *matrix) answers(t testing.TB, name string) {
	t.Helper()
	if _, err := m.c.Health(t.Context(), name); err != nil {
		t.Errorf("it does not answer: %v", err)
	}
}

func (m *matrix) underWay(t testing.TB) (out []api.Operation) {
	t.Helper()
	ops, err := m.c.Operations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range ops {
		if !client.Ended(op) {
			out = append(out, op)
		}
	}
	return out
}

// onlyBaseline waits until nothing is there that was not before.
func (m *matrix) onlyBaseline(t testing.TB) {
	t.Helper()
	host.Eventually(t, cleanTime, func() error {
		if now := host.Inventory(t); !slices.Equal(now, m.baseline) {
			return fmt.Errorf("left behind: %s", difference(now, m.baseline))
		}
		return nil
	})
}

func difference(now, before []string) string {
	var b strings.Builder
	for _, s := range now {
		if !slices.Contains(before, s) {
			fmt.Fprintf(&b, "+%s ", s)
		}
	}
	for _, s := range before {
		if !slices.Contains(now, s) {
			fmt.Fprintf(&b, "-%s ", s)
		}
	}
	return b.String()
}
