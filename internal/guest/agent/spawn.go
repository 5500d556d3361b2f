package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawner starts the processes of sessions.
type spawner struct {
	log         *slog.Logger
	cgroupRoots []string // where a unified hierarchy may be mounted

	mu       sync.Mutex
	oom      *os.File // own oom_score_adj; nil: not protected; guarded by mu
	sessions int      // guarded by mu; numbers the cgroups
	next     *cgroup  // guarded by mu; made ahead for the next session; may be nil
	old      []string // guarded by mu; cgroups that still had processes when their session ended
	warned   bool     // guarded by mu; cgroups do not work and that was said
}

// guestCgroups are where systemd and others mount the unified hierarchy.
var guestCgroups = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

// Values of oom_score_adj: the agent is killed last, sessions as anything else.
const (
	oomNever  = "-1000"
	oomNormal = "0"
)

// protect makes the agent the last process the kernel kills for memory.
func (s *spawner) protect() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(oomNever)
	}
	if err != nil {
		return fmt.Errorf("cannot protect the agent from the out-of-memory killer: %w", err)
	}
	s.oom = f
	return nil
}

// start starts c as the leader of a session of its own, so that its whole
// process group can be signalled. With tty, fds[0] becomes its terminal.
func (s *spawner) start(c command, fds [3]int, tty bool) (*process, error) {
	attr := &syscall.ProcAttr{
		Dir:   c.dir,
		Env:   c.env,
		Files: []uintptr{uintptr(fds[0]), uintptr(fds[1]), uintptr(fds[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: tty},
	}
	if c.as.uid != 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: c.as.uid, Gid: c.as.gid, Groups: c.as.groups}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The score is inherited by fork. Setting it on the child afterwards would
	// miss what the child has forked by then.
	s.setScore(oomNormal)
	defer s.setScore(oomNever)
	p := &process{spawner: s, done: make(chan struct{})}
	var err error
	if p.pid, err = s.forkIntoCgroup(p, c, attr); err != nil {
		return nil, err
	}
	go p.await()
	return p, nil
}

// setScore changes the agent's own score; mu is held.
func (s *spawner) setScore(score string) {
	if s.oom == nil {
		return
	}
	if _, err := s.oom.WriteAt([]byte(score), 0); err != nil {
		s.log.Warn("cannot set oom_score_adj", "err", err)
	}
}

// forkIntoCgroup starts the process in a cgroup of its own where the guest
// has a unified hierarchy, so that an init which ends the agent's group, or a
// limit on it, does not take sessions along. It is not needed for anything
// else, so without one the process starts all the same. mu is held.
func (s *spawner) forkIntoCgroup(p *process, c command, attr *syscall.ProcAttr) (int, error) {
	attr.Sys.PidFD = &p.pidfd
	group, err := s.takeCgroup()
	if group != nil {
		pid, forkErr := s.forkInto(group, c, attr)
		if errors.Is(forkErr, unix.ENODEV) { // somebody has removed it since it was made
			if group, err = s.makeCgroup(); group != nil {
				pid, forkErr = s.forkInto(group, c, attr)
			}
		}
		if forkErr == nil && group != nil {
			p.cgroup = group.dir
			return pid, nil
		}
		err = errors.Join(err, forkErr)
	}
	pid, forkErr := forkWithSlack(normalSlack, c.path, c.argv, attr)
	if forkErr == nil && err != nil && !s.warned {
		s.warned = true
		s.log.Warn("sessions have no cgroup of their own", "err", err)
	}
	return pid, forkErr
}

// cgroup is one of a session, open.
type cgroup struct {
	fd  int
	dir string
}

// forkInto starts the process in g, which is used up by that.
func (s *spawner) forkInto(g *cgroup, c command, attr *syscall.ProcAttr) (int, error) {
	defer unix.Close(g.fd)
	attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, g.fd
	defer func() { attr.Sys.UseCgroupFD = false }()
	pid, err := forkWithSlack(normalSlack, c.path, c.argv, attr)
	if err != nil {
		err = errors.Join(err, os.Remove(g.dir))
	}
	return pid, err
}

// takeCgroup returns the one made ahead, or a new one; mu is held.
func (s *spawner) takeCgroup() (*cgroup, error) {
	if g := s.next; g != nil {
		s.next = nil
		return g, nil
	}
	return s.makeCgroup()
}

// makeCgroup returns nil where there is no unified hierarchy (yet).
func (s *spawner) makeCgroup() (*cgroup, error) {
	for _, root := range s.cgroupRoots {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		s.sessions++
		dir := filepath.Join(root, "banger", "session-"+strconv.Itoa(s.sessions))
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, os.ErrNotExist) { // the first session
			err = os.MkdirAll(dir, 0o755)
		}
		if err != nil {
			return nil, err
		}
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: dir, Err: err}
		}
		return &cgroup{fd, dir}, nil
	}
	return nil, nil
}

// tidy removes the cgroup of a session that has ended, and earlier ones whose
// last background process has ended since, and makes one for the next session.
func (s *spawner) tidy(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []string
	if dir != "" {
		s.old = append(s.old, dir)
	}
	for _, d := range s.old {
		if err := os.Remove(d); errors.Is(err, unix.EBUSY) {
			left = append(left, d)
		}
	}
	s.old = left
	if s.next == nil {
		s.next, _ = s.makeCgroup() // the next session tries again, and tells
	}
}

// process is a running or ended command.
type process struct {
	pid     int
	pidfd   int    // -1 where the kernel has none; await's
	cgroup  string // "" without
	spawner *spawner
	done    chan struct{} // closed when it has ended
	status  unix.WaitStatus

	mu     sync.Mutex
	reaped bool // guarded by mu: the pid may be somebody else's
}

// await reaps the process. It waits as for input, where the kernel allows that:
// a thread that blocks in a system call is one more for Go's runtime to look
// after while the command runs.
func (p *process) await() {
	defer close(p.done)
	if p.pidfd >= 0 && unix.SetNonblock(p.pidfd, true) == nil {
		f := os.NewFile(uintptr(p.pidfd), "process")
		defer f.Close()
		raw, err := f.SyscallConn()
		if err == nil && raw.Read(func(uintptr) bool { return p.reap(unix.WNOHANG) }) == nil {
			return
		}
	}
	for {
		err := unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.reap(0)
}

// reap reports whether the process has ended. The pid stays ours until it is
// marked as reaped, so that no signal can go to a stranger.
func (p *process) reap(options int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		pid, err := unix.Wait4(p.pid, &p.status, options, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			p.spawner.log.Error("cannot wait for a process", "pid", p.pid, "err", err)
			p.status = 255 << 8 // as an exit status that no command of ours reports
		case pid == 0:
			return false
		}
		p.reaped = true
		return true
	}
}

// leave is for a client that is gone: when the process has ended too, what it
// used is tidied up.
func (p *process) leave() {
	go func() {
		<-p.done
		p.spawner.tidy(p.cgroup)
	}()
}

// signal signals the process group pgid, or the process's own if it is 0.
func (p *process) signal(sig unix.Signal, pgid int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return nil
	}
	if pgid <= 1 {
		pgid = p.pid
	}
	return unix.Kill(-pgid, sig)
}
