package agent

import (
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// signalByName knows all that Linux has, by their names without SIG.
func signalByName(name string) (unix.Signal, bool) {
	sig := unix.SignalNum("SIG" + name)
	return sig, sig != 0
}

// signalName returns "" for a real-time signal.
func signalName(sig unix.Signal) string {
	return strings.TrimPrefix(unix.SignalName(sig), "SIG")
}

// sshSignals are those of RFC 4254, 6.10. There are no others on SSH's wire.
var sshSignals = []ssh.Signal{
	ssh.SIGABRT, ssh.SIGALRM, ssh.SIGFPE, ssh.SIGHUP, ssh.SIGILL, ssh.SIGINT, ssh.SIGKILL,
	ssh.SIGPIPE, ssh.SIGQUIT, ssh.SIGSEGV, ssh.SIGTERM, ssh.SIGUSR1, ssh.SIGUSR2,
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
	if name := signalName(status.Signal()); status.Signaled() && slices.Contains(sshSignals, ssh.Signal(name)) {
		_, err = ch.SendRequest("exit-signal", false, ssh.Marshal(exitSignal{Signal: name}))
	} else {
		err = reportStatus(ch, shellStatus(status))
	}
	return err
}

// shellStatus is what a shell says of an ended process.
func shellStatus(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

func reportStatus(ch ssh.Channel, status int) error {
	_, err := ch.SendRequest("exit-status", false, ssh.Marshal(exitStatus{uint32(status)}))
	return err
}
