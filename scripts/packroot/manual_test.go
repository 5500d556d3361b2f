package main

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/cli"
)

func TestManualHasAPageForEachGroup(t *testing.T) {
	to := tree{root: t.TempDir(), version: "1", date: time.Unix(1, 0).UTC()}
	if err := to.manual(); err != nil {
		t.Fatal(err)
	}
	groups := 0
	for _, cmd := range cli.Commands().Commands() {
		if cmd.Hidden || !cmd.HasSubCommands() {
			continue
		}
		groups++
		text := page(t, to.root, "banger-"+cmd.Name())
		for _, child := range cmd.Commands() {
			if ref := "banger-" + cmd.Name() + "-" + child.Name(); child.Name() != "help" && !strings.Contains(text, ref) {
				t.Errorf("the page of %s does not name %s", cmd.Name(), ref)
			}
		}
	}
	if groups < 5 {
		t.Errorf("only %d groups", groups)
	}
	for _, want := range []string{"SH SYNOPSIS", "--rm", "make test", "banger 1"} {
		if !strings.Contains(page(t, to.root, "banger-vm-run"), want) {
			t.Errorf("the page of vm run lacks %q", want)
		}
	}
	if _, err := os.Stat(filepath.Join(to.root, "usr/share/man/man1/banger-vm-help.1.gz")); err == nil {
		t.Error("there is a page about help")
	}
}

func page(t *testing.T, root, name string) string {
	t.Helper()
	f, err := os.Open(filepath.Join(root, "usr/share/man/man1", name+".1.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), `\-`, "-")
}
