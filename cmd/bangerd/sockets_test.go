package main

import (
	"net"
	"os"
	"syscall"
	"testing"
)

// filed returns the descriptor of a socket under a name, as systemd passes it.
func filed(t *testing.T, name string, socket interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := socket.File()
	if err != nil {
		t.Fatal(err)
	}
	return named(t, name, f)
}

// named returns a descriptor of its own for f, which is closed.
func named(t *testing.T, name string, f *os.File) *os.File {
	t.Helper()
	defer f.Close()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

func TestSortSockets(t *testing.T) {
	unix := func() *os.File {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return filed(t, "api", l)
	}
	tcp := func(name string) *os.File {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return filed(t, name, l)
	}
	udp := func() *os.File {
		p, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return filed(t, "dns", p)
	}
	null := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return named(t, "dns", f)
	}
	for name, tt := range map[string]struct {
		files          []*os.File
		ok             bool
		packets, lists int
	}{
		"both":         {[]*os.File{tcp("dns"), unix(), udp(), tcp("dns"), udp()}, true, 2, 2},
		"no names":     {[]*os.File{unix()}, true, 0, 0},
		"none":         {nil, false, 0, 0},
		"no API":       {[]*os.File{udp()}, false, 0, 0},
		"two APIs":     {[]*os.File{unix(), tcp("api")}, false, 0, 0},
		"unknown name": {[]*os.File{unix(), tcp("ssh")}, false, 0, 0},
		"not a socket": {[]*os.File{unix(), null()}, false, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := sortSockets(tt.files)
			if (err == nil) != tt.ok {
				t.Fatalf("error is %v", err)
			}
			if !tt.ok {
				return
			}
			if s.api == nil || len(s.dnsPackets) != tt.packets || len(s.dnsListeners) != tt.lists {
				t.Errorf("sockets are %+v", s)
			}
			if err := s.close(); err != nil {
				t.Error(err)
			}
		})
	}
}
