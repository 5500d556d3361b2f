package main

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// sockets are what systemd opened for bangerd, by their FileDescriptorName=.
type sockets struct {
	api net.Listener
	// Of banger-dns.socket; none if somebody else has the port.
	dnsPackets   []net.PacketConn
	dnsListeners []net.Listener
}

// sortSockets takes the descriptors over. One of an unknown name is an error:
// it would be open for nobody.
func sortSockets(files []*os.File) (s sockets, err error) {
	defer func() {
		for _, f := range files {
			_ = f.Close() // s has duplicates
		}
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for _, f := range files {
		switch f.Name() {
		case "api":
			if s.api != nil {
				return s, errors.New("got two sockets for the API from systemd")
			}
			if s.api, err = net.FileListener(f); err != nil {
				return s, fmt.Errorf("cannot use the API's socket: %w", err)
			}
		case "dns":
			if err := s.addDNS(f); err != nil {
				return s, fmt.Errorf("cannot use a socket for names: %w", err)
			}
		default:
			return s, fmt.Errorf("got a socket %q from systemd that is for nothing", f.Name())
		}
	}
	if s.api == nil {
		return s, errors.New("got no socket for the API: bangerd is started by bangerd.socket")
	}
	return s, nil
}

// addDNS takes a stream or a datagram socket.
func (s *sockets) addDNS(f *os.File) error {
	l, streamErr := net.FileListener(f)
	if streamErr == nil {
		s.dnsListeners = append(s.dnsListeners, l)
		return nil
	}
	p, err := net.FilePacketConn(f)
	if err != nil {
		return errors.Join(streamErr, err)
	}
	s.dnsPackets = append(s.dnsPackets, p)
	return nil
}

func (s sockets) close() error {
	var errs []error
	if s.api != nil {
		errs = append(errs, s.api.Close())
	}
	for _, l := range s.dnsListeners {
		errs = append(errs, l.Close())
	}
	for _, p := range s.dnsPackets {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}
