package main

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"banger/internal/cli"
)

// manual writes a page of section 1 for each command and group, and the words that
// shells complete by.
func (t *tree) manual() error {
	root := cli.Commands()
	return errors.Join(t.pages(root), t.completions(root))
}

func (t *tree) pages(cmd *cobra.Command) error {
	if cmd.Hidden || cmd.Name() == "help" {
		return nil
	}
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	head := &doc.GenManHeader{Title: strings.ToUpper(name), Section: "1", Date: &t.date,
		Source: "banger " + t.version, Manual: "banger"}
	cmd.DisableAutoGenTag = true // the date is in the head
	var page bytes.Buffer
	if err := doc.GenMan(cmd, head, &page); err != nil {
		return fmt.Errorf("cannot write the page of %s: %w", cmd.CommandPath(), err)
	}
	err := t.zip(filepath.Join("/usr/share/man/man1", name+".1.gz"), page.Bytes())
	for _, child := range cmd.Commands() {
		err = errors.Join(err, t.pages(child))
	}
	return err
}

func (t *tree) completions(root *cobra.Command) error {
	var bash, zsh, fish bytes.Buffer
	if err := errors.Join(root.GenBashCompletionV2(&bash, true), root.GenZshCompletion(&zsh), root.GenFishCompletion(&fish, true)); err != nil {
		return fmt.Errorf("cannot write completions: %w", err)
	}
	return errors.Join(
		t.write("/usr/share/bash-completion/completions/banger", bash.Bytes(), 0o644),
		t.write("/usr/share/zsh/vendor-completions/_banger", zsh.Bytes(), 0o644),
		t.write("/usr/share/fish/vendor_completions.d/banger.fish", fish.Bytes(), 0o644))
}
