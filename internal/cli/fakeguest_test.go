package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// fakeGuest serves SSH as the agent does and runs the commands on this host.
type fakeGuest struct {
	t      testing.TB
	config *ssh.ServerConfig
	mu     sync.Mutex
	sizes  []string // of terminals, as they were asked for and changed to
	conns  []net.Conn
	deaf   bool // signals do not reach the command
}

func newFakeGuest(t testing.TB, userCA, hostKey, hostCert string) *fakeGuest {
	t.Helper()
	ca := parseKey(t, userCA)
	checker := &ssh.CertChecker{IsUserAuthority: func(k ssh.PublicKey) bool {
		return string(k.Marshal()) == string(ca.Marshal())
	}}
	key, err := ssh.ParsePrivateKey([]byte(hostKey))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(parseKey(t, hostCert).(*ssh.Certificate), key)
	if err != nil {
		t.Fatal(err)
	}
	g := &fakeGuest{t: t, config: &ssh.ServerConfig{PublicKeyCallback: checker.Authenticate}}
	g.config.AddHostKey(signer)
	return g
}

func parseKey(t testing.TB, line string) ssh.PublicKey {
	t.Helper()
	k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (g *fakeGuest) serve(c net.Conn) {
	defer c.Close()
	g.mu.Lock()
	g.conns = append(g.conns, c)
	g.mu.Unlock()
	conn, channels, requests, err := ssh.NewServerConn(c, g.config)
	if err != nil {
		return // the client under test tells why
	}
	defer conn.Close()
	go ssh.DiscardRequests(requests)
	for ch := range channels {
		channel, reqs, err := ch.Accept()
		if err != nil {
			return
		}
		go g.session(channel, reqs)
	}
}

// hangUp breaks all connections, as a VMM that dies does.
func (g *fakeGuest) hangUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		_ = c.Close()
	}
}

// window is a window-change.
type window struct{ Columns, Rows, Width, Height uint32 }

func (g *fakeGuest) session(channel ssh.Channel, reqs <-chan *ssh.Request) {
	var env []string
	var cmd *exec.Cmd
	var tty bool
	for r := range reqs {
		switch r.Type {
		case "env":
			var m struct{ Name, Value string }
			_ = ssh.Unmarshal(r.Payload, &m)
			env = append(env, m.Name+"="+m.Value)
		case "pty-req":
			var m struct {
				Term                         string
				Columns, Rows, Width, Height uint32
				Modes                        string
			}
			_ = ssh.Unmarshal(r.Payload, &m)
			env = append(env, "TERM="+m.Term)
			g.sized(window{m.Columns, m.Rows, m.Width, m.Height})
			tty = true
			_ = r.Reply(true, nil)
			continue
		case "window-change":
			var m window
			_ = ssh.Unmarshal(r.Payload, &m)
			g.sized(m)
		case "exec", "shell":
			var err error
			var wait func()
			cmd, wait, err = g.start(channel, env, tty)
			_ = r.Reply(err == nil, nil) // before anything about its end
			if err != nil {
				_ = channel.Close()
				continue
			}
			go wait()
			continue
		case "signal":
			var m struct{ Name string }
			_ = ssh.Unmarshal(r.Payload, &m)
			if cmd != nil && !g.deaf {
				_ = cmd.Process.Signal(unix.SignalNum("SIG" + m.Name))
			}
		}
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
	if cmd != nil { // the client hung up
		_ = cmd.Process.Kill()
	}
}

func (g *fakeGuest) sized(w window) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sizes = append(g.sizes, fmt.Sprintf("%dx%d", w.Columns, w.Rows))
}

func (g *fakeGuest) seenSizes() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string{}, g.sizes...)
}

func (g *fakeGuest) start(channel ssh.Channel, env []string, tty bool) (*exec.Cmd, func(), error) {
	var x guest.Exec
	visible := []string{}
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, guest.ExecEnv+"="); ok {
			if err := json.Unmarshal([]byte(v), &x); err != nil {
				return nil, nil, err
			}
			continue
		}
		visible = append(visible, kv)
	}
	if len(x.Argv) == 0 {
		x.Argv = []string{"/bin/sh"}
	}
	if _, err := exec.LookPath(x.Argv[0]); err != nil {
		x.Argv = []string{"sh", "-c", "exit 127"} // as shells do
	}
	cmd := exec.Command(x.Argv[0], x.Argv[1:]...)
	cmd.Dir = x.Dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, visible...)
	if tty {
		wait, err := g.startTTY(channel, cmd)
		return cmd, wait, err
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	go func() {
		_, _ = io.Copy(stdin, channel)
		_ = stdin.Close()
	}()
	return cmd, func() { g.wait(channel, cmd) }, nil
}

func (g *fakeGuest) startTTY(channel ssh.Channel, cmd *exec.Cmd) (func(), error) {
	f, err := pty.Start(cmd)
	if err != nil {
		return nil, err
	}
	go func() { _, _ = io.Copy(f, channel) }()
	return func() {
		_, _ = io.Copy(channel, f)
		g.wait(channel, cmd)
		_ = f.Close()
	}, nil
}

func (g *fakeGuest) wait(channel ssh.Channel, cmd *exec.Cmd) {
	err := cmd.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		if ws := e.Sys().(syscall.WaitStatus); ws.Signaled() {
			_, _ = channel.SendRequest("exit-signal", false, ssh.Marshal(struct {
				Signal     string
				CoreDumped bool
				Message    string
				Language   string
			}{strings.TrimPrefix(unix.SignalName(ws.Signal()), "SIG"), false, "", ""}))
			_ = channel.Close()
			return
		}
	}
	code := uint32(cmd.ProcessState.ExitCode())
	_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{code}))
	_ = channel.Close()
}
