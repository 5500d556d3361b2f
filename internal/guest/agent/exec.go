package agent

import (
	"bufio"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/guest/stream"
)

// lingerTime is how long a host may take to close a connection after it was
// told that the command has ended.
const lingerTime = time.Minute

// execRoute runs commands for the host. ready returns nil as long as there is
// no image to run them in.
func execRoute(ready func() *launcher, log *slog.Logger) route {
	return jsonRoute("POST", stream.Path, func(e guest.Exec) (takeover, error) {
		l := ready()
		if l == nil {
			return nil, api.Conflict("this guest has no identity yet").WithHint("wait until it is ready")
		}
		if err := e.Validate(); err != nil {
			return nil, api.BadRequest("cannot run the command: %v", err)
		}
		return func(conn net.Conn, r *bufio.Reader) { l.exec(conn, r, e, log) }, nil
	}, nil).upgradedTo(stream.Protocol)
}

// exec runs a command whose client is at the other end of conn, until that end
// is closed.
func (l *launcher) exec(conn net.Conn, r *bufio.Reader, e guest.Exec, log *slog.Logger) {
	g := stream.NewGuest(r, conn)
	end := func(exit stream.Exit) {
		_ = conn.SetReadDeadline(time.Now().Add(lingerTime))
		_ = g.Exit(exit) // the host is gone
	}
	run, err := l.startExec(g, e, end)
	if err != nil {
		end(stream.Exit{Code: startStatus(err), Error: err.Error()})
		run = nil
	}
	if err := g.Serve(control{run}); err != nil {
		log.Info("a command's connection broke", "err", err)
	}
	if run != nil {
		run.hangUp()
	}
}

func (l *launcher) startExec(g *stream.Guest, e guest.Exec, end func(stream.Exit)) (*running, error) {
	var tty *terminal
	if t := e.TTY; t != nil {
		var err error
		if tty, err = openTerminal(ptyRequest{Term: t.Term, Rows: uint32(t.Rows), Cols: uint32(t.Cols)}); err != nil {
			return nil, err
		}
	}
	resolve := func(base command) (command, error) { return directCommand(base, e.Argv) }
	if len(e.Argv) == 0 {
		resolve = func(base command) (command, error) { return shellCommand(base, nil) }
	}
	run, err := l.launch(request{user: "root", dir: e.Dir, env: e.Env, resolve: resolve}, tty, streams{
		stdin: g.Stdin, stdout: g.Stdout, stderr: g.Stderr,
		ended: func(status unix.WaitStatus) {
			exit := stream.Exit{Code: shellStatus(status)}
			if status.Signaled() {
				exit.Signal = signalName(status.Signal())
			}
			end(exit)
		},
	})
	if err != nil && tty != nil {
		tty.close()
	}
	return run, err
}

// control acts on a command for the host. A command that has ended, or never
// ran, does not hear it.
type control struct{ run *running }

func (c control) Signal(name string) {
	if sig, known := signalByName(name); known && c.run != nil {
		_ = c.run.signal(sig)
	}
}

func (c control) Resize(s stream.Size) {
	if c.run != nil && c.run.tty != nil {
		_ = c.run.tty.resize(windowChange{Cols: uint32(s.Columns), Rows: uint32(s.Rows)})
	}
}

// ServeExec serves the part of the control port that runs commands, as a guest
// that has its identity does, but on any listener and in the system it is in.
// It is for tests of what is at the other end.
func ServeExec(l net.Listener, log *slog.Logger) error {
	here := &launcher{accounts: "/etc", spawner: &spawner{log: log}}
	return serveHTTP(l, []route{execRoute(func() *launcher { return here }, log)}, log)
}
