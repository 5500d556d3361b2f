package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// fallbackShell is for accounts without a shell, and for those whose shell is
// not in the image.
const fallbackShell = "/bin/sh"

// command is all a process needs to be started.
type command struct {
	path string
	argv []string
	env  []string
	dir  string
	as   account
}

// startError is why a command does not run, with the status a shell gives it:
// 127 when there is none, 126 when it cannot be executed.
type startError struct {
	status int
	err    error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// startStatus is the exit status for a command that does not run.
func startStatus(err error) int {
	if e, ok := errors.AsType[*startError](err); ok {
		return e.status
	}
	return 126
}

func notFound(format string, args ...any) error {
	return &startError{127, fmt.Errorf(format, args...)}
}

func notExecutable(format string, args ...any) error {
	return &startError{126, fmt.Errorf(format, args...)}
}

// directCommand runs argv without a shell. argv[0] is looked for in the PATH
// of the session, as a shell would.
func directCommand(base command, argv []string) (command, error) {
	path, err := lookPath(argv[0], base.env, base.dir)
	if err != nil {
		return command{}, err
	}
	base.path, base.argv = path, argv
	return base, nil
}

// shellCommand is the account's shell: for line, or as a login shell if line
// is nil.
func shellCommand(base command, line *string) (command, error) {
	for _, shell := range []string{base.as.shell, fallbackShell} {
		if executable(shell) != nil {
			continue
		}
		name := filepath.Base(shell)
		base.path, base.argv = shell, []string{"-" + name}
		if line != nil {
			base.argv = []string{name, "-c", *line}
		}
		return base, nil
	}
	return command{}, notFound("this image has no shell: neither %s nor %s", base.as.shell, fallbackShell)
}

// chooseDir returns the directory to start in. One that the client named has
// to exist; the others are preferences.
func chooseDir(wanted, image string, as account) (string, error) {
	if wanted != "" {
		if !isDir(wanted) {
			return "", notExecutable("cannot enter directory %s: there is none", wanted)
		}
		return wanted, nil
	}
	for _, dir := range []string{image, as.home} {
		if isDir(dir) {
			return dir, nil
		}
	}
	return "/", nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return filepath.IsAbs(path) && err == nil && st.IsDir()
}

// defaultPath is where programs are, unless image or client say otherwise.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment puts a session's variables together: ours, the image's, the
// client's, later ones winning.
func environment(as account, term string, image, client []string) []string {
	env := []string{
		"PATH=" + defaultPath,
		"LANG=C.UTF-8",
		"HOME=" + as.home,
		"USER=" + as.name,
		"LOGNAME=" + as.name,
		"SHELL=" + as.shell,
	}
	if term != "" {
		env = append(env, "TERM="+term)
	}
	return lastWins(slices.Concat(env, image, client))
}

func lastWins(env []string) []string {
	index := make(map[string]int, len(env))
	var out []string
	for _, kv := range env {
		k, _, _ := strings.Cut(kv, "=")
		if i, ok := index[k]; ok {
			out[i] = kv
			continue
		}
		index[k] = len(out)
		out = append(out, kv)
	}
	return out
}

func getenv(env []string, key string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, key+"="); ok {
			return v
		}
	}
	return ""
}

// validName reports whether a client may set a variable of this name. Any
// name goes that does not confuse programs; sessions are their user's own.
func validName(name string) bool {
	if name == "" || len(name) > 256 {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '=' })
}

// lookPath finds the program a shell would run for file. A path with a slash
// is taken as it is, from dir.
func lookPath(file string, env []string, dir string) (string, error) {
	if file == "" {
		return "", notFound("the command is empty")
	}
	if strings.Contains(file, "/") {
		path := file
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return path, asStartError(file, executable(path))
	}
	var denied error
	for _, d := range filepath.SplitList(getenv(env, "PATH")) {
		if !filepath.IsAbs(d) {
			continue // the current directory is not searched
		}
		path := filepath.Join(d, file)
		err := executable(path)
		if err == nil {
			return path, nil
		}
		if denied == nil && errors.Is(err, fs.ErrPermission) {
			denied = err
		}
	}
	if denied != nil {
		return "", asStartError(file, denied)
	}
	return "", notFound("cannot run %s: not found in PATH", file)
}

func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case st.IsDir():
		return &fs.PathError{Op: "execute", Path: path, Err: unix.EISDIR}
	case st.Mode()&0o111 == 0:
		return &fs.PathError{Op: "execute", Path: path, Err: unix.EACCES}
	}
	return nil
}

// asStartError gives a failure to execute file its status. What is there but
// cannot run (no permission, a directory, another architecture, a script whose
// interpreter is missing) is 126.
func asStartError(file string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist) && executable(file) != nil:
		return notFound("cannot run %s: no such file", file)
	default:
		return notExecutable("cannot run %s: %w", file, err)
	}
}
