package agent

import (
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// signalNames are those of RFC 4254, 6.10. There are no others on the wire.
var signalNames = map[unix.Signal]ssh.Signal{
	unix.SIGABRT: ssh.SIGABRT,
	unix.SIGALRM: ssh.SIGALRM,
	unix.SIGFPE:  ssh.SIGFPE,
	unix.SIGHUP:  ssh.SIGHUP,
	unix.SIGILL:  ssh.SIGILL,
	unix.SIGINT:  ssh.SIGINT,
	unix.SIGKILL: ssh.SIGKILL,
	unix.SIGPIPE: ssh.SIGPIPE,
	unix.SIGQUIT: ssh.SIGQUIT,
	unix.SIGSEGV: ssh.SIGSEGV,
	unix.SIGTERM: ssh.SIGTERM,
	unix.SIGUSR1: ssh.SIGUSR1,
	unix.SIGUSR2: ssh.SIGUSR2,
}

func signalByName(name string) (unix.Signal, bool) {
	for sig, n := range signalNames {
		if string(n) == name {
			return sig, true
		}
	}
	return 0, false
}

// exitStatus and exitSignal are the payloads of RFC 4254, 6.10.
type exitStatus struct{ Status uint32 }

type exitSignal struct {
	Signal     string
	CoreDumped bool
	Message    string
	Language   string
}

// reportExit tells the client how a process ended. A signal without a name on
// the wire becomes the status a shell would give it.
func reportExit(ch ssh.Channel, status unix.WaitStatus) error {
	var err error
	switch name, named := signalNames[status.Signal()]; {
	case !status.Signaled():
		err = reportStatus(ch, status.ExitStatus())
	case named:
		_, err = ch.SendRequest("exit-signal", false, ssh.Marshal(exitSignal{Signal: string(name)}))
	default:
		err = reportStatus(ch, 128+int(status.Signal()))
	}
	return err
}

func reportStatus(ch ssh.Channel, status int) error {
	_, err := ch.SendRequest("exit-status", false, ssh.Marshal(exitStatus{uint32(status)}))
	return err
}
