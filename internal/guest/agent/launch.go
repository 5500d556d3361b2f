package agent

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sys/unix"
)

// launcher starts commands in the image's root, for SSH sessions and for the
// control port.
type launcher struct {
	env      []string // of the image
	workDir  string   // of the image; may be empty
	accounts accountFiles
	spawner  *spawner
}

// request is what a client wants to run.
type request struct {
	user    string
	dir     string   // empty: the image's, else the home directory
	env     []string // K=V, on top of the image's
	resolve resolver
}

// resolver says what to run, given as whom, where and with which variables.
type resolver func(base command) (command, error)

// streams join a command with its client.
type streams struct {
	stdin          io.Reader
	stdout, stderr io.Writer // a terminal's output is all stdout's
	// ended is called once, after all output, when the command has ended.
	ended func(unix.WaitStatus)
}

// running is a command with its streams.
type running struct {
	proc  *process
	tty   *terminal // nil: pipes
	stdin *pipe     // nil: a terminal
}

// launch starts a command on tty, or on pipes if that is nil. After an error
// nothing runs; tty is the caller's still.
func (l *launcher) launch(req request, tty *terminal, s streams) (*running, error) {
	cmd, err := l.prepare(req, tty)
	if err != nil {
		return nil, err
	}
	if tty != nil {
		return l.launchOnTTY(cmd, tty, s)
	}
	return l.launchOnPipes(cmd, s)
}

func (l *launcher) prepare(req request, tty *terminal) (command, error) {
	as, err := l.accounts.find(req.user)
	if err != nil {
		return command{}, err
	}
	term := ""
	if tty != nil {
		term = tty.term
	}
	base := command{as: as, env: environment(as, term, l.env, req.env)}
	if base.dir, err = chooseDir(req.dir, l.workDir, as); err != nil {
		return command{}, err
	}
	return req.resolve(base)
}

func (l *launcher) launchOnTTY(cmd command, tty *terminal, s streams) (*running, error) {
	if err := tty.giveTo(cmd.as); err != nil {
		return nil, fmt.Errorf("cannot give the terminal to %s: %w", cmd.as.name, err)
	}
	proc, err := l.spawner.start(cmd, [3]int{tty.slave, tty.slave, tty.slave}, true)
	if err != nil {
		return nil, asStartError(cmd.argv[0], err)
	}
	tty.dropSlave()
	go func() {
		copyInput(tty.master, s.stdin)
		_ = tty.endInput() // it ended meanwhile
	}()
	go func() {
		copyOutput(s.stdout, tty.master, proc.done)
		<-proc.done
		s.ended(proc.status)
	}()
	return &running{proc: proc, tty: tty}, nil
}

func (l *launcher) launchOnPipes(cmd command, s streams) (*running, error) {
	stdin, stdinErr := newPipe("stdin", true)
	stdout, stdoutErr := newPipe("stdout", false)
	stderr, stderrErr := newPipe("stderr", false)
	pipes := slices.DeleteFunc([]*pipe{stdin, stdout, stderr}, func(p *pipe) bool { return p == nil })
	err := errors.Join(stdinErr, stdoutErr, stderrErr)
	var proc *process
	if err == nil {
		if proc, err = l.spawner.start(cmd, [3]int{stdin.theirs, stdout.theirs, stderr.theirs}, false); err != nil {
			err = asStartError(cmd.argv[0], err)
		}
	}
	if err != nil {
		for _, p := range pipes {
			p.close()
		}
		return nil, err
	}
	for _, p := range pipes {
		p.handOver()
	}
	go func() {
		copyInput(stdin.ours, s.stdin)
		_ = stdin.ours.Close() // the command has seen the end, or does not care
	}()
	errDone := make(chan struct{})
	go func() {
		defer close(errDone)
		copyOutput(s.stderr, stderr.ours, proc.done)
	}()
	go func() {
		copyOutput(s.stdout, stdout.ours, proc.done)
		<-errDone
		<-proc.done
		s.ended(proc.status)
	}()
	return &running{proc: proc, stdin: stdin}, nil
}

// signal reaches what Ctrl-C would: on a terminal the group in its
// foreground, else the command's own group.
func (r *running) signal(sig unix.Signal) error {
	if r.tty != nil {
		return r.proc.signal(sig, r.tty.foreground())
	}
	return r.proc.signal(sig, 0)
}

// hangUp is for a client that is gone. It has to be called once.
func (r *running) hangUp() {
	r.proc.leave()
	_ = r.signal(unix.SIGHUP) // it ended meanwhile
	if r.tty != nil {
		r.tty.close()
		return
	}
	_ = r.stdin.ours.Close() // the copying may wait for a process that lives on and reads nothing
}
