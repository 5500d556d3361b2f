package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"banger/internal/guest"
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
	exec    *guest.Exec // nil: as OpenSSH does
	tty     *terminal   // nil: three pipes
	started bool
	proc    *process // nil until the command runs
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
		run, ok := ses.request(req)
		if req.WantReply {
			_ = req.Reply(ok, nil) // the connection is gone: requests ends
		}
		if run != nil {
			ses.start(run)
		}
	}
	if ses.proc != nil {
		_ = ses.signal(unix.SIGHUP) // it ended meanwhile
	}
	if ses.tty != nil {
		ses.tty.close()
	}
}

// resolver turns a request into a command, given what the session has set up.
type resolver func(base command) (command, error)

// request handles one request. A resolver in return is to be started after
// the answer.
func (s *session) request(req *ssh.Request) (run resolver, ok bool) {
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
		run, ok = s.resolver(req)
		s.started = ok
		return run, ok
	default:
		return nil, false
	}
}

func (s *session) setenv(payload []byte) bool {
	var kv struct{ Name, Value string }
	if ssh.Unmarshal(payload, &kv) != nil || s.started {
		return false
	}
	if kv.Name == guest.ExecEnv {
		e := &guest.Exec{}
		if err := json.Unmarshal([]byte(kv.Value), e); err != nil || validExec(*e) != nil {
			s.exec = &guest.Exec{Argv: []string{""}} // it must not fall back to the shell
			return false
		}
		s.exec = e
		return true
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
	if ssh.Unmarshal(payload, &name) != nil || s.proc == nil {
		return false
	}
	sig, known := signalByName(name.Name)
	return known && s.signal(sig) == nil
}

// signal reaches what Ctrl-C would: on a terminal the group in its
// foreground, else the command's own group.
func (s *session) signal(sig unix.Signal) error {
	if s.tty != nil {
		return s.proc.signal(sig, s.tty.foreground())
	}
	return s.proc.signal(sig, 0)
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
	case s.exec != nil && len(s.exec.Argv) > 0:
		return func(base command) (command, error) { return directCommand(base, s.exec.Argv) }, true
	case s.exec != nil || req.Type == "shell":
		return func(base command) (command, error) { return shellCommand(base, nil) }, true
	default:
		return func(base command) (command, error) { return shellCommand(base, &arg.Value) }, true
	}
}

// start starts the command, or tells the client why it cannot be.
func (s *session) start(run resolver) {
	cmd, err := s.prepare(run)
	if err == nil {
		err = s.launch(cmd)
	}
	if err == nil {
		return
	}
	status := 126
	if e, ok := errors.AsType[*startError](err); ok {
		status = e.status
	}
	// What follows fails only when the client is gone.
	_, _ = fmt.Fprintf(s.ch.Stderr(), "banger: %v%s", err, s.newline())
	_ = reportStatus(s.ch, status)
	_ = s.ch.Close()
}

func (s *session) newline() string {
	if s.tty != nil {
		return "\r\n" // the client's terminal is raw
	}
	return "\n"
}

func (s *session) prepare(run resolver) (command, error) {
	as, err := s.srv.accounts.find(s.user)
	if err != nil {
		return command{}, err
	}
	term, wanted := "", ""
	if s.tty != nil {
		term = s.tty.term
	}
	if s.exec != nil {
		wanted = s.exec.Dir
	}
	base := command{as: as, env: environment(as, term, s.srv.env, s.env)}
	if base.dir, err = chooseDir(wanted, s.srv.workDir, as); err != nil {
		return command{}, err
	}
	return run(base)
}

func (s *session) launch(cmd command) error {
	if s.tty != nil {
		return s.launchOnTTY(cmd)
	}
	return s.launchOnPipes(cmd)
}

func (s *session) launchOnTTY(cmd command) error {
	if err := s.tty.giveTo(cmd.as); err != nil {
		return fmt.Errorf("cannot give the terminal to %s: %w", cmd.as.name, err)
	}
	proc, err := s.srv.spawner.start(cmd, [3]int{s.tty.slave, s.tty.slave, s.tty.slave}, true)
	if err != nil {
		return asStartError(cmd.argv[0], err)
	}
	s.proc = proc
	s.tty.dropSlave()
	go func() {
		copyInput(s.tty.master, s.ch)
		_ = s.tty.endInput() // it ended meanwhile
	}()
	go s.finish(proc, func() { copyOutput(s.ch, s.tty.master, proc.done) })
	return nil
}

func (s *session) launchOnPipes(cmd command) error {
	stdin, stdinErr := newPipe("stdin", true)
	stdout, stdoutErr := newPipe("stdout", false)
	stderr, stderrErr := newPipe("stderr", false)
	pipes := slices.DeleteFunc([]*pipe{stdin, stdout, stderr}, func(p *pipe) bool { return p == nil })
	if err := errors.Join(stdinErr, stdoutErr, stderrErr); err != nil {
		for _, p := range pipes {
			p.close()
		}
		return err
	}
	proc, err := s.srv.spawner.start(cmd, [3]int{stdin.theirs, stdout.theirs, stderr.theirs}, false)
	if err != nil {
		for _, p := range pipes {
			p.close()
		}
		return asStartError(cmd.argv[0], err)
	}
	s.proc = proc
	for _, p := range pipes {
		p.handOver()
	}
	go func() {
		copyInput(stdin.ours, s.ch)
		_ = stdin.ours.Close() // the command has seen the end, or does not care
	}()
	errDone := make(chan struct{})
	go func() {
		defer close(errDone)
		copyOutput(s.ch.Stderr(), stderr.ours, proc.done)
	}()
	go s.finish(proc, func() {
		copyOutput(s.ch, stdout.ours, proc.done)
		<-errDone
	})
	return nil
}

// finish waits for the output and the command's end, in this order, and tells
// the client.
func (s *session) finish(proc *process, output func()) {
	output()
	<-proc.done
	// Both fail only when the client is gone.
	_ = reportExit(s.ch, proc.status)
	_ = s.ch.Close()
}
