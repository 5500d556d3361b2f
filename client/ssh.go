package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/jsonhttp"
)

// sshArgv is the command that connects to the daemon of destination. Prompts,
// keys, agents, jump hosts and known hosts are OpenSSH's and the user's business.
func sshArgv(destination, port string) []string {
	argv := append([]string{"ssh", "-T"}, ShareSSH()...)
	if port != "" {
		argv = append(argv, "-p", port)
	}
	return append(argv, "--", destination, "banger", "dial-stdio")
}

// ShareSSH returns options with which several ssh commands to one host share
// one connection. Where there is no private place for it there are none: it
// only saves time.
func ShareSSH() []string {
	dir, err := controlDir()
	if err != nil {
		return nil
	}
	return []string{"-o", "ControlMaster=auto", "-o", "ControlPersist=60",
		// Quoted for ssh's own parser; a % of the directory is no token.
		"-o", `ControlPath="` + filepath.Join(strings.ReplaceAll(dir, "%", "%%"), "ssh-%C") + `"`}
}

// controlDir is where connections of OpenSSH are shared: private, since who
// can open such a socket can use the connection.
func controlDir() (string, error) {
	dir := filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "banger")
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(os.TempDir(), "banger-"+strconv.Itoa(os.Getuid()))
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 || int(st.Uid) != os.Getuid() {
		return "", fmt.Errorf("%s is not private", dir)
	}
	return dir, nil
}

// commandDialer starts argv for each connection, with one end of a socket pair
// as its stdin and stdout: unlike two pipes, our end has deadlines and half-close.
// With ownGroup the terminal's signals do not reach it: Ctrl-C is for the command
// in the guest, and has to travel on this connection. It then cannot ask a
// person anything.
func commandDialer(host string, argv []string, ownGroup bool) jsonhttp.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ours, theirs, err := socketPair()
		if err != nil {
			return nil, fmt.Errorf("cannot make a socket pair: %w", err)
		}
		conn := &commandConn{UnixConn: ours, host: host, ended: make(chan struct{})}
		// Not CommandContext: ctx is of the dialling, the connection lives longer.
		cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // see above
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: ownGroup}
		cmd.Stdin, cmd.Stdout = theirs, theirs
		// A ControlPersist master keeps stderr open for long: do not wait for its end.
		cmd.Stderr, cmd.WaitDelay = &conn.stderr, 100*time.Millisecond
		err = cmd.Start()
		_ = theirs.Close() // the command has its own
		if err != nil {
			_ = ours.Close()
			if errors.Is(err, exec.ErrNotFound) {
				return nil, api.Problemf(503, api.CodePrerequisite, "cannot reach %s: there is no program %s", host, argv[0]).
					WithHint("install it (the OpenSSH client is openssh-client in Debian and Ubuntu)")
			}
			return nil, fmt.Errorf("cannot start %s: %w", argv[0], err)
		}
		go func() {
			_ = cmd.Wait() // what matters of how it ended is in stderr
			close(conn.ended)
		}()
		return conn, nil
	}
}

func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	mine := os.NewFile(uintptr(fds[0]), "ssh")
	defer mine.Close() // FileConn duplicates it
	theirs := os.NewFile(uintptr(fds[1]), "ssh")
	conn, err := net.FileConn(mine)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// commandConn is a connection that a running command carries. It has the
// CloseWrite of what it embeds.
type commandConn struct {
	*net.UnixConn
	host     string
	stderr   tail
	answered atomic.Bool
	ended    chan struct{}
}

func (c *commandConn) Read(p []byte) (int, error) {
	n, err := c.UnixConn.Read(p)
	if n > 0 {
		c.answered.Store(true)
	}
	return n, c.explain(err)
}

func (c *commandConn) Write(p []byte) (int, error) {
	n, err := c.UnixConn.Write(p)
	return n, c.explain(err)
}

// explain replaces an end that comes before any answer by what ssh said.
func (c *commandConn) explain(err error) error {
	end := errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
	if !end || c.answered.Load() {
		return err
	}
	select {
	case <-c.ended:
	case <-time.After(time.Second): // it closed its stdout and lives on
	}
	return commandProblem(c.host, c.stderr.String())
}

func commandProblem(host, said string) error {
	p := api.Problemf(503, api.CodeUnavailable, "cannot reach bangerd at %s", host)
	said = strings.TrimSpace(said)
	if said != "" {
		p.Detail += ": " + said
	}
	if strings.Contains(said, "not found") {
		return p.WithHint("install banger there: sudo banger system install --owner USER")
	}
	return p.WithHint("see whether ssh itself gets there")
}

// tail keeps the last kilobytes written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if over := t.buf.Len() - 4096; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
