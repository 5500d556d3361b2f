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
	dir, err := s.makeCgroup()
	if dir != nil {
		defer dir.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(dir.Fd())
		pid, forkErr := syscall.ForkExec(c.path, c.argv, attr)
		if forkErr == nil {
			p.cgroup = dir.Name()
			return pid, nil
		}
		err = errors.Join(forkErr, os.Remove(dir.Name()))
		attr.Sys.UseCgroupFD = false
	}
	pid, forkErr := syscall.ForkExec(c.path, c.argv, attr)
	if forkErr == nil && err != nil && !s.warned {
		s.warned = true
		s.log.Warn("sessions have no cgroup of their own", "err", err)
	}
	return pid, forkErr
}

// makeCgroup returns nil where there is no unified hierarchy (yet).
func (s *spawner) makeCgroup() (*os.File, error) {
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
		return os.Open(dir)
	}
	return nil, nil
}

// dropCgroup removes the cgroup of a session that has ended, and earlier ones
// whose last background process has ended since.
func (s *spawner) dropCgroup(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []string
	for _, d := range append(s.old, dir) {
		if err := os.Remove(d); errors.Is(err, unix.EBUSY) {
			left = append(left, d)
		}
	}
	s.old = left
}

// process is a running or ended command.
type process struct {
	pid     int
	cgroup  string // "" without
	spawner *spawner
	done    chan struct{} // closed when it has ended
	status  unix.WaitStatus

	mu     sync.Mutex
	reaped bool // guarded by mu: the pid may be somebody else's
}

// await reaps the process. The pid stays ours until it is marked as reaped,
// so that no signal can go to a stranger.
func (p *process) await() {
	for {
		err := unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	_, err := unix.Wait4(p.pid, &p.status, 0, nil)
	p.reaped = true
	p.mu.Unlock()
	if err != nil {
		p.spawner.log.Error("cannot wait for a process", "pid", p.pid, "err", err)
		p.status = 255 << 8 // as an exit status that no command of ours reports
	}
	close(p.done)
	if p.cgroup != "" {
		p.spawner.dropCgroup(p.cgroup)
	}
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
