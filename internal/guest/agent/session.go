package agent

import (
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// maxSessionEnv bounds the variables one client may set.
const maxSessionEnv = 1024

// session is one SSH session channel. It runs one command. All fields belong
// to the goroutine that handles requests; the command's streams and its end
// are handled by others.
type session struct {
	srv  *sshServer
	ch   ssh.Channel
	user string

	env     []string
	tty     *terminal // nil: three pipes
	started bool
	run     *running // nil until the command runs
}

// session serves a channel until the client closes it or is gone. Then the
// command, if it still runs, is hung up on, as by a lost terminal; whoever
// wants to live on can ignore that.
func (s *sshServer) session(nc ssh.NewChannel, user string) {
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	ses := &session{srv: s, ch: ch, user: user}
	for req := range requests {
		resolve, ok := ses.request(req)
		if req.WantReply {
			_ = req.Reply(ok, nil) // the connection is gone: requests ends
		}
		if resolve != nil {
			ses.start(resolve)
		}
	}
	if ses.run != nil {
		ses.run.hangUp()
	} else if ses.tty != nil {
		ses.tty.close()
	}
}

// request handles one request. A resolver in return is to be started after
// the answer.
func (s *session) request(req *ssh.Request) (resolve resolver, ok bool) {
	switch req.Type {
	case "env":
		return nil, s.setenv(req.Payload)
	case "pty-req":
		return nil, s.openTTY(req.Payload)
	case "window-change":
		var w windowChange
		return nil, ssh.Unmarshal(req.Payload, &w) == nil && s.tty != nil && s.tty.resize(w) == nil
	case "signal":
		return nil, s.signalByName(req.Payload)
	case "exec", "shell", "subsystem":
		if s.started {
			return nil, false
		}
		resolve, ok = s.resolver(req)
		s.started = ok
		return resolve, ok
	default:
		return nil, false
	}
}

func (s *session) setenv(payload []byte) bool {
	var kv struct{ Name, Value string }
	if ssh.Unmarshal(payload, &kv) != nil || s.started {
		return false
	}
	if len(s.env) == maxSessionEnv || !validName(kv.Name) || strings.Contains(kv.Value, "\x00") {
		return false
	}
	s.env = append(s.env, kv.Name+"="+kv.Value)
	return true
}

func (s *session) openTTY(payload []byte) bool {
	var req ptyRequest
	if ssh.Unmarshal(payload, &req) != nil || s.started || s.tty != nil || strings.Contains(req.Term, "\x00") {
		return false
	}
	t, err := openTerminal(req)
	if err != nil {
		s.srv.log.Warn(err.Error())
		return false
	}
	s.tty = t
	return true
}

func (s *session) signalByName(payload []byte) bool {
	var name struct{ Name string }
	if ssh.Unmarshal(payload, &name) != nil || s.run == nil {
		return false
	}
	sig, known := signalByName(name.Name)
	return known && s.run.signal(sig) == nil
}

// resolver reads an exec, shell or subsystem request.
func (s *session) resolver(req *ssh.Request) (resolver, bool) {
	var arg struct{ Value string }
	if req.Type != "shell" && (ssh.Unmarshal(req.Payload, &arg) != nil || strings.Contains(arg.Value, "\x00")) {
		return nil, false
	}
	switch {
	case req.Type == "subsystem":
		return sftpCommand, arg.Value == "sftp"
	case req.Type == "shell":
		return func(base command) (command, error) { return shellCommand(base, nil) }, true
	default:
		return func(base command) (command, error) { return shellCommand(base, &arg.Value) }, true
	}
}

// start starts the command, or tells the client why it cannot be.
func (s *session) start(resolve resolver) {
	run, err := s.srv.launch(request{user: s.user, env: s.env, resolve: resolve}, s.tty, streams{
		stdin: s.ch, stdout: s.ch, stderr: s.ch.Stderr(),
		// What follows fails only when the client is gone.
		ended: func(status unix.WaitStatus) {
			_ = reportExit(s.ch, status)
			_ = s.ch.Close()
		},
	})
	if err == nil {
		s.run = run
		return
	}
	_, _ = fmt.Fprintf(s.ch.Stderr(), "banger: %v%s", err, s.newline())
	_ = reportStatus(s.ch, startStatus(err))
	_ = s.ch.Close()
}

func (s *session) newline() string {
	if s.tty != nil {
		return "\r\n" // the client's terminal is raw
	}
	return "\n"
}
