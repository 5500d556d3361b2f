package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"banger/api"
	"banger/client"
	"banger/internal/machine"
	"banger/internal/paths"
)

// world is what resolving a host looks at; tests have their own.
type world struct {
	localExists  func() bool
	machineState func(name string) (machine.State, error)
	machineArgv  func(name string) ([]string, error)
}

var hostWorld = world{
	localExists: func() bool {
		_, err := os.Stat(paths.DaemonSocket)
		return err == nil || filepath.IsAbs(paths.DaemonSocket) && os.IsPermission(err)
	},
	machineState: func(name string) (machine.State, error) {
		m, err := machine.New(name)
		if err != nil {
			return machine.Absent, err
		}
		s, err := m.Status()
		return s.State, err
	},
	machineArgv: func(name string) ([]string, error) {
		m, err := machine.New(name)
		if err != nil {
			return nil, err
		}
		argv := m.SSHCommand(context.Background(), machine.Owner, false, "banger", "dial-stdio").Args
		return append(append(argv[:1:1], client.ShareSSH()...), argv[1:]...), nil
	},
}

// resolveHost finds the daemon a command is about: the flag, else BANGER_HOST,
// else this host if a daemon is installed, else the default machine if there
// is one, else this host after all, whose client knows the hint.
func resolveHost(flag string, getenv func(string) string, w world) (*client.Client, error) {
	host := flag
	if host == "" {
		host = getenv("BANGER_HOST")
	}
	kind, name, named := strings.Cut(host, ":")
	switch {
	case host == "local":
		return client.New("")
	case kind == "machine":
		if named && name == "" {
			return nil, api.BadRequest("cannot use %q as a host: the machine has no name", host)
		}
		return machineClient(name, w)
	case host != "":
		return client.New(host)
	case w.localExists():
		return client.New("")
	}
	state, err := w.machineState("")
	if err != nil {
		return nil, err
	}
	if state != machine.Absent {
		return machineClient("", w)
	}
	return client.New("")
}

func machineClient(name string, w world) (*client.Client, error) {
	state, err := w.machineState(name)
	if err != nil {
		return nil, err
	}
	label := strings.TrimSuffix("machine:"+name, ":")
	switch state {
	case machine.Absent:
		return nil, api.NotFound("cannot reach %s: it was never made", label).
			WithHint("%s", strings.TrimSpace("banger machine init "+name))
	case machine.Stopped:
		return nil, api.Conflict("cannot reach %s: it is stopped", label).
			WithHint("%s", strings.TrimSpace("banger machine start "+name))
	}
	argv, err := w.machineArgv(name)
	if err != nil {
		return nil, err
	}
	return client.NewCommand(label, argv...), nil
}
