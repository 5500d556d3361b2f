package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/version"
)

// server is the serving process: the control API, and SSH once there is an
// identity.
type server struct {
	log *slog.Logger
	ssh *vsockListener

	mu    sync.Mutex
	phase guest.Phase   // guarded by mu
	taken bool          // guarded by mu; an identity is being or has been applied
	init  string        // guarded by mu; see guest.Health
	grace time.Duration // guarded by mu; set with guest.PhaseEnding
	// commands run in the image; nil before there is one.
	commands *launcher // guarded by mu
	// growing are mounts whose filesystems follow the size of their disks.
	growing []guest.Mount // guarded by mu
	// imageInit says that pid 1 is the image's init, or about to be.
	imageInit bool // guarded by mu

	link               int // to pid 1
	spawner            *spawner
	startOnce, endOnce sync.Once
	resizing           sync.Mutex
	sessions           sessions
	intent             *intent
	signalled          *pid1Signals // nil where the init needs no such help
}

// Serve is the main function of the serving process. It returns only on
// failure.
func Serve() error {
	for _, fd := range []int{controlFD, sshFD, pid1FD} {
		unix.CloseOnExec(fd) // sessions must not get them
	}
	log := newLogger()
	if err := os.WriteFile("/proc/self/comm", []byte("banger-agent"), 0); err != nil { // else it is "exe"
		log.Warn("cannot set the process name", "err", err)
	}
	s := &server{
		log: log, phase: guest.PhaseWaiting, init: initAgent, link: pid1FD,
		spawner: &spawner{log: log, cgroupRoots: guestCgroups}, intent: newIntent(),
	}
	s.outliveKill()
	go s.listenToPid1()
	control, err := newVsockListener(controlFD, guest.ControlPort)
	if err != nil {
		return err
	}
	if s.ssh, err = newVsockListener(sshFD, guest.SSHPort); err != nil {
		return err
	}
	err = serveHTTP(control, s.routes(), log)
	log.Error(err.Error())
	return err
}

func (s *server) routes() []route {
	return []route{
		jsonRoute("GET", "/v1/health", s.getHealth, nil),
		// The host gets the answer before the guest becomes busy with what
		// follows.
		jsonRoute("PUT", "/v1/identity", s.putIdentity, s.startInit),
		jsonRoute("POST", "/v1/shutdown", s.postShutdown, s.end),
		{method: "GET", path: "/v1/end", handle: s.getEnd},
		jsonRoute("GET", "/v1/ports", s.getPorts, nil),
		jsonRoute("POST", "/v1/grow", s.postGrow, nil),
		s.sessions.counted(execRoute(s.launcher, s.log)),
	}
}

func (s *server) launcher() *launcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commands
}

// initAgent is what Health says where the image has no init.
const initAgent = "agent"

func (s *server) getHealth(struct{}) (guest.Health, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.healthLocked(), nil
}

func (s *server) healthLocked() guest.Health {
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		s.log.Warn("cannot read the boot id", "err", err)
	}
	return guest.Health{
		Phase:   s.phase,
		Version: version.Version,
		Kernel:  kernelRelease(),
		BootID:  strings.TrimSpace(string(bootID)),
		Init:    s.init,

		Sessions: int(s.sessions.open.Load()),
	}
}

// putIdentity applies the document and answers when sessions work. Up to the
// moment the image's root is entered a failure leaves nothing behind, and the
// host may try again.
func (s *server) putIdentity(doc guest.Identity) (guest.Health, error) {
	if err := doc.Validate(); err != nil {
		return guest.Health{}, api.BadRequest("cannot accept identity: %v", err)
	}
	commands := &launcher{env: doc.Env, workDir: doc.WorkDir, accounts: "/etc", spawner: s.spawner}
	ssh, err := newSSHServer(doc.SSH, commands, s.log)
	if err != nil {
		return guest.Health{}, api.BadRequest("cannot accept identity: %v", err)
	}
	if err := s.begin(); err != nil {
		return guest.Health{}, err
	}
	init, entered, err := s.settle(doc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.taken = entered // this boot cannot be used any more
		return guest.Health{}, fmt.Errorf("cannot set up guest %s: %w", doc.ID, err)
	}
	if init != "" {
		s.init = init
	}
	if s.phase == guest.PhaseWaiting { // not ending meanwhile
		s.phase = guest.PhaseReady
	}
	s.commands = commands
	go ssh.serve(s.sessions.listener(s.ssh))
	return s.healthLocked(), nil
}

// begin claims the one identity of this boot.
func (s *server) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken || s.phase != guest.PhaseWaiting {
		return api.Conflict("this guest has been given its identity already").WithHint("a guest takes one identity per boot; restart the VM")
	}
	s.taken = true
	return nil
}

// settle moves both processes into the image. entered tells that it is too
// late for another try.
func (s *server) settle(doc guest.Identity) (init string, entered bool, err error) {
	if err := personalise(doc); err != nil {
		return "", false, err
	}
	var card string
	if doc.Network != nil {
		if card, err = setUpNetwork(*doc.Network); err != nil {
			return "", false, fmt.Errorf("cannot set the network up: %w", err)
		}
	}
	if err := mountRoot(doc.Root); err != nil {
		return "", false, err
	}
	if init, err = fillRoot(doc); err != nil {
		unmountRoot()
		return "", false, err
	}
	if err := enterRoot(); err != nil {
		return "", true, err
	}
	warnings, err := mountImage(init != "")
	if err != nil {
		return "", true, err
	}
	if doc.Network != nil {
		if err := configureImage(*doc.Network, card, init != ""); err != nil {
			return "", true, err
		}
	}
	if warnings = errors.Join(warnings, raiseLoopback()); warnings != nil {
		s.log.Warn("the image's root is not complete", "err", warnings)
	}
	if err := s.spawner.protect(); err != nil {
		s.log.Warn(err.Error())
	}
	s.watchVolumes(doc.Mounts)
	return init, true, nil
}

// fillRoot mounts further filesystems into the mounted image, writes the
// document's files, which may lie on them, and finds the image's init.
func fillRoot(doc guest.Identity) (init string, err error) {
	root, err := openTree(newRoot)
	if err != nil {
		return "", err
	}
	defer root.close()
	if err := mountVolumes(root, doc.Mounts); err != nil {
		return "", err
	}
	for _, f := range doc.Files {
		if err := root.write(f); err != nil {
			return "", err
		}
	}
	return root.findInit(doc.Root.Init)
}

// configureImage tells the programs of the image, which is entered, about the
// network.
func configureImage(n guest.Network, card string, hasInit bool) error {
	root, err := openTree("/")
	if err != nil {
		return err
	}
	defer root.close()
	return writeNetConf(root, n, card, hasInit)
}

// startInit gives pid 1 its order when the guest has become ready.
func (s *server) startInit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != guest.PhaseReady {
		return
	}
	s.startOnce.Do(func() {
		order := orderStay
		if s.init != initAgent {
			order = orderExec + s.init
			s.imageInit = true
			s.watchInit(s.init)
		}
		if err := send(s.link, order); err != nil {
			s.log.Error("pid 1 takes no orders", "err", err)
		}
	})
}

// listenToPid1 ends when pid 1 has become the image's init: its end of the
// link is closed by that.
func (s *server) listenToPid1() {
	for {
		said, err := receive(s.link)
		action, ends := strings.CutPrefix(said, saidEnd)
		switch {
		case err != nil:
			return
		case said == saidStay:
			s.mu.Lock()
			s.init, s.imageInit = initAgent, false
			s.mu.Unlock()
		case ends:
			s.leave(action)
		}
	}
}

// outliveKill keeps the process up when somebody in the guest sends it, or
// everybody, a SIGTERM; but an ending system is not held up. Signals are
// caught, not ignored, since sessions would inherit that.
//
// The SIGTERM that an ending init sends to all processes is also how the agent
// learns of the end, without ever looking.
func (s *server) outliveKill() {
	c := make(chan os.Signal, 8)
	signal.Notify(c, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		for sig := range c {
			if sig != unix.SIGTERM {
				continue
			}
			action := s.initEnds()
			if action != "" || s.ending() {
				s.leave(action)
			}
		}
	}()
}

func (s *server) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase == guest.PhaseEnding || initName() == "systemd-shutdow" // comm holds 15 characters
}

// leave ends this process, after the host has been told why.
func (s *server) leave(action string) {
	s.intent.declare(action)
	s.intent.awaitTold(tellTimeout)
	s.log.Info("ended", "action", action)
	os.Exit(0)
}
