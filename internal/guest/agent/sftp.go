package agent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pkg/sftp"
)

// sftpCommand serves files from a process of its own: it has the account's
// rights, and its memory ends with it. The program is found wherever the image
// came from, since it is this process's own.
func sftpCommand(base command) (command, error) {
	base.path, base.argv = "/proc/self/exe", []string{"banger-agent", SFTPArg}
	base.dir = base.as.home
	if !isDir(base.dir) {
		base.dir = "/"
	}
	return base, nil
}

// SFTP is the main function of the file server: the protocol on stdin and
// stdout, relative paths from the working directory.
func SFTP() error {
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("cannot serve files: %w", err)
	}
	s, err := sftp.NewServer(struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout}, sftp.WithServerWorkingDirectory(dir))
	if err != nil {
		return fmt.Errorf("cannot serve files: %w", err)
	}
	if err := s.Serve(); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("cannot serve files: %w", err)
	}
	return nil
}
